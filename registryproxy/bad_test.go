package registryproxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

// TestBadRequests: each is refused without a word to any registry.
func TestBadRequests(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for _, test := range []struct {
		path   string
		status int
		code   string
	}{
		{"/v2/a/b/manifests/v1?ns=..", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=user@evil.example", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=user:password@evil.example", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=evil.example%2f..", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=evil.example:0", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=169.254.169.254", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=169.254.1.1:5000", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=[fe80::1]", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=metadata.google.internal", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=a.example&ns=b.example", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1?ns=%zz", 400, "NAME_INVALID"},
		{"/v2/?ns=..", 400, "NAME_INVALID"},
		{"/v2/a/b/manifests/v1", 404, "NAME_UNKNOWN"},
		{"/v2/../b/manifests/v1?ns=" + host, 400, "NAME_INVALID"},
		{"/v2/a//b/manifests/v1?ns=" + host, 400, "NAME_INVALID"},
		{"/v2/a/%2e%2e/b/manifests/v1?ns=" + host, 400, "NAME_INVALID"},
		{"/v2/a%00/manifests/v1?ns=" + host, 400, "NAME_INVALID"},
		{"/v2/" + strings.Repeat("a/", 128) + "b/manifests/v1?ns=" + host, 400, "NAME_INVALID"},
		{"/v2/a/manifests/..?ns=" + host, 404, "MANIFEST_UNKNOWN"},
		{"/v2/a/manifests/v1%2f..%2fv2?ns=" + host, 404, "UNSUPPORTED"},
		{"/v2/a/manifests/?ns=" + host, 404, "MANIFEST_UNKNOWN"},
		{"/v2/a/manifests/" + strings.Repeat("v", 129) + "?ns=" + host, 404, "MANIFEST_UNKNOWN"},
		{"/v2/a/manifests/sha256:" + strings.ToUpper(hex) + "?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/manifests/sha256:" + hex[1:] + "?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/SHA256:" + hex + "?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/sha256:" + hex + "0?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/sha256:..%2f..%2f" + hex + "?ns=" + host, 400, "NAME_INVALID"},
		{"/v2/a/blobs/md5:" + hex[:32] + "?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/sha256:?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/" + hex + "?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/uploads/x?ns=" + host, 404, "UNSUPPORTED"},
		{"/v2/_catalog?ns=" + host, 404, "UNSUPPORTED"},
		{"/v2/a/tags/other?ns=" + host, 400, "DIGEST_INVALID"},
		{"/v2/a/unknown/x?ns=" + host, 404, "UNSUPPORTED"},
		{"/v3/", 404, "UNSUPPORTED"},
		{"/v2x", 404, "UNSUPPORTED"},
		{"/", 404, "UNSUPPORTED"},
	} {
		t.Run(test.path[:min(len(test.path), 60)], func(t *testing.T) {
			w := newWorld(t)
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				r := w.do(method, test.path)
				if r.status != test.status || (method == http.MethodGet && !bytes.Contains(r.body, []byte(`"code":"`+test.code+`"`))) {
					t.Errorf("%s: status %d, want %d %s: %s", method, r.status, test.status, test.code, r.body)
				}
			}
			if n := len(w.up.requests()); n != 0 {
				t.Errorf("a registry was asked: %q", w.up.requests())
			}
		})
	}
}

// endless is a manifest of 1 GB, as much of it as is read.
type endless struct{ announced bool }

func (e endless) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	if e.announced {
		w.Header().Set("Content-Length", strconv.Itoa(1<<30))
	}
	for n := 0; n < 1<<30 && r.Method == http.MethodGet; n += 1 << 20 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			return
		}
		if n > 2*blockfmt.MaxManifestSize {
			panic("the proxy reads on")
		}
	}
}

// TestBadRegistries: what is no answer becomes an error, soon, and nothing of it is kept.
func TestBadRegistries(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(manifest)
	byDigest, byTag, referrers := "/v2/a/b/manifests/"+d.String(), "/v2/a/b/manifests/v1", "/v2/a/b/referrers/"+d.String()
	blob := "/v2/a/b/blobs/" + d.String()
	status := func(code int, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for _, h := range headers {
				k, v, _ := strings.Cut(h, ": ")
				w.Header().Set(k, v)
			}
			w.WriteHeader(code)
		}
	}
	body := func(b []byte, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			status(200, headers...)(w, r)
			if r.Method == http.MethodGet {
				_, _ = w.Write(b)
			}
		}
	}
	nested := []byte(`{"schemaVersion":2,"manifests":[` + strings.Repeat(`{"manifests":[`, 100_000) + strings.Repeat(`]}`, 100_000) + `]}`)
	layers := []byte(`{"schemaVersion":2,"layers":[` + strings.TrimSuffix(strings.Repeat(`{},`, 100_000), ",") + `]}`)
	for _, test := range []struct {
		name, path string
		registry   http.Handler
		status     int
	}{
		{"manifest of 1 GB", byDigest, endless{true}, 502},
		{"manifest of 1 GB, unannounced", byDigest, endless{false}, 502},
		{"manifest of 1 GB by tag", byTag, endless{false}, 502},
		{"index nested 100,000 deep", byTag, body(nested), 200},
		{"100,000 layers", byTag, body(layers), 200},
		{"referrers of 1 GB", referrers, endless{false}, 502},
		{"referrers nested 100,000 deep", referrers, body(nested), 502},
		{"100,000 referrers", referrers, body(bytes.Replace(layers, []byte("layers"), []byte("manifests"), 1)), 200},
		{"referrers that are none", referrers, body([]byte("<html>")), 502},
		{"other manifest", byDigest, body([]byte("{}")), 502},
		{"empty manifest", byDigest, body(nil), 502},
		{"manifest that ends early", byDigest, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(manifest[:5])
			panic(http.ErrAbortHandler)
		}), 503},
		{"tag that names nonsense", byTag, status(200, "Docker-Content-Digest: sha256:xyz"), 200},
		{"tag that names what is not there", byTag, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				w.WriteHeader(404)
				return
			}
			w.Header().Set("Docker-Content-Digest", d.String())
		}), 404},
		{"blob that is another", blob, body(manifest, "Docker-Content-Digest: "+unknownDigest), 502},
		{"blob without a length", blob, body(nil), 502},
		{"blob of length 0", blob, body(nil, "Content-Length: 0"), 502},
		{"blob whose length only GET tells", blob, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Header.Get("Range") != "":
				w.Header().Set("Content-Range", "bytes 0-0/19")
				w.WriteHeader(206)
				_, _ = w.Write(manifest[:1])
			case r.Method == http.MethodGet:
				_, _ = w.Write(manifest)
			}
		}), 200},
		{"blob of another length", blob, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", map[string]string{"HEAD": "19", "GET": "20"}[r.Method])
			if r.Method == http.MethodGet {
				_, _ = w.Write(make([]byte, 20))
			}
		}), 502},
		{"blob with wrong bytes", blob, body(make([]byte, 19), "Content-Length: 19"), 502},
		{"blob that needs a login by now", blob, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "19")
			if r.Method == http.MethodGet {
				w.Header().Set("Content-Length", "0")
				w.WriteHeader(401)
			}
		}), 403},
		{"too many requests", blob, status(429), 503},
		{"teapot", blob, status(418), 418},
		{"moved", blob, status(301, "Location: http://169.254.169.254/"), 502},
		{"internal error", byTag, status(500), 503},
		{"HTML in place of an error", byTag, body([]byte("<html>")), 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.up.set(host, test.registry)
				query := "?artifactType=x&ns=" + host // has lists of referrers parsed, and means nothing elsewhere
				for range 2 {
					start := time.Now()
					r := w.get(test.path + query)
					if r.status != test.status || time.Since(start) > time.Minute {
						t.Errorf("status %d after %v, want %d: %.300s", r.status, time.Since(start), test.status, r.body)
					}
					if r.status != 200 && !bytes.HasPrefix(r.body, []byte(`{"errors":[{"code":`)) {
						t.Errorf("body %.300q", r.body)
					}
				}
				synctest.Wait()
				if w.disk.kept != 0 && test.status != 200 {
					t.Errorf("%d blobs are kept", w.disk.kept)
				}
			})
		})
	}
}

// TestSlowClients: who does not take the answer, or does not finish the request, is cut off, and the download goes on without.
func TestSlowClients(t *testing.T) {
	w := newWorld(t, func(c *registryproxy.Config) { c.WriteTimeout, c.DefaultUpstream = time.Second, host })
	body := noise(4, 16<<20) // more than sockets buffer
	h := memoryRegistry()
	d := push(t, h, "some/image", "", "", body)
	w.up.set(host, h)
	server := httptest.NewUnstartedServer(w.proxy)
	server.Config.ReadHeaderTimeout = 100 * time.Millisecond
	server.Start()
	defer server.Close()
	request := "GET /v2/some/image/blobs/" + d.String() + " HTTP/1.1\r\nHost: x\r\n"
	for name, say := range map[string]string{"reads nothing": request + "\r\n", "never ends the header": request} {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, say)
		if name == "never ends the header" { // the end comes, though nothing was asked
			if _, err := io.ReadAll(c); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for w.proxy.Counters().Aborted.Load() == 0 { // the test's own time limit ends this
		<-time.After(time.Millisecond)
	}
	resp, err := server.Client().Get(server.URL + "/v2/some/image/blobs/" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
		t.Errorf("the next client: %d bytes, %v", len(got), err)
	}
	if n := w.up.count("GET"); n != 1 {
		t.Errorf("%d reads of the registry, want 1", n)
	}
}

// TestHalfClosedClients: a client that has closed its side for writing still gets its answer or an end, and costs nothing for long.
func TestHalfClosedClients(t *testing.T) {
	w := newWorld(t, func(c *registryproxy.Config) { c.DefaultUpstream = host })
	h := memoryRegistry()
	body := noise(5, 100_000)
	d := push(t, h, "some/image", "", "", body)
	w.up.set(host, h)
	server := httptest.NewServer(w.proxy)
	defer server.Close()
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /v2/some/image/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", d)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil { // or cut off: the server takes it for gone
		got, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != 200 || !bytes.Equal(got, body)) {
			t.Errorf("status %d, %d bytes", resp.StatusCode, len(got))
		}
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection does not end: %v", err)
	}
}

// TestConnectionsAreUsedAgain: after an answer the deadline of its writes is gone.
func TestConnectionsAreUsedAgain(t *testing.T) {
	w := newWorld(t, func(c *registryproxy.Config) { c.DefaultUpstream, c.WriteTimeout = host, 50*time.Millisecond })
	h := memoryRegistry()
	d := push(t, h, "some/image", "", "", []byte("small"))
	w.up.set(host, h)
	server := httptest.NewServer(w.proxy)
	defer server.Close()
	get := func(path, want string) {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	get("/v2/some/image/blobs/"+d.String(), "small")
	<-time.After(60 * time.Millisecond) // the deadline passes
	get("/v2/", "{}")
}
