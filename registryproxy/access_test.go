package registryproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

const challenge = `Bearer realm="https://auth.example/token",service="registry.example",scope="repository:some/image:pull"`

// guarded is a registry that answers nobody without one of the tokens, and can be down.
type guarded struct {
	http.Handler
	asks   string                   // WWW-Authenticate
	tokens atomic.Pointer[[]string] // per repository: "some/image Bearer a"
	down   atomic.Bool
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.down.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	for _, token := range *g.tokens.Load() {
		repo, auth, _ := strings.Cut(token, " ")
		if strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/") && r.Header.Get("Authorization") == auth {
			if repo == "other/image" { // go-containerregistry's has all blobs in all repositories
				w.WriteHeader(http.StatusNotFound)
				return
			}
			g.Handler.ServeHTTP(w, r)
			return
		}
	}
	w.Header().Set("WWW-Authenticate", g.asks)
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":[{"Name":"some/image"}]}]}`))
}

func (g *guarded) let(tokens ...string) { g.tokens.Store(&tokens) }

// newGuarded returns a world with the usual content behind tokens.
func newGuarded(t *testing.T, change ...func(*registryproxy.Config)) (*world, *guarded, content) {
	t.Helper()
	w := newWorld(t, change...)
	h := memoryRegistry()
	c := fill(t, h, true)
	g := &guarded{Handler: h, asks: challenge}
	g.let()
	w.up.set(host, g)
	return w, g, c
}

// things are what a client can ask for of the content, by digest and tag.
func things(c content) map[string][]byte {
	return map[string][]byte{
		"/v2/some/image/blobs/" + c.blobDigest.String() + "?ns=" + host: c.blob,
		"/v2/some/image/manifests/" + c.image.String() + "?ns=" + host:  c.manifest,
		"/v2/some/image/manifests/v1?ns=" + host:                        c.manifest,
	}
}

// TestChallengesReachTheClient: the registry's 401 comes through as it is, so that the client can log in by itself.
func TestChallengesReachTheClient(t *testing.T) {
	w, _, c := newGuarded(t)
	for path := range things(c) {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := w.do(method, path)
			if r.status != 401 || r.header.Get("WWW-Authenticate") != challenge {
				t.Errorf("%s %s: status %d, challenge %q", method, path, r.status, r.header.Get("WWW-Authenticate"))
			}
			if r.header.Get("Docker-Content-Digest") != "" || r.header.Get("Etag") != "" {
				t.Errorf("%s %s: a refusal with headers of the content: %v", method, path, r.header)
			}
		}
	}
	if r := w.get("/v2/?ns=" + host); r.status != 401 || r.header.Get("WWW-Authenticate") != challenge {
		t.Errorf("base: status %d, challenge %q", r.status, r.header.Get("WWW-Authenticate"))
	}
	if r := w.get("/v2/some/image/tags/list?ns=" + host); r.status != 401 || !bytes.Contains(r.body, []byte(`"detail":[{"Name":"some/image"}]`)) {
		t.Errorf("tags: status %d: %s", r.status, r.body)
	}
}

// TestNobodyReadsWhatSomebodyElsePulled: what is kept is given to those whom the registry accepts, for that repository.
func TestNobodyReadsWhatSomebodyElsePulled(t *testing.T) {
	w, g, c := newGuarded(t)
	g.let("some/image Bearer alice", "other/image Bearer bob")
	for path, want := range things(c) {
		if r := w.get(path, "Authorization: Bearer alice"); r.status != 200 || !bytes.Equal(r.body, want) {
			t.Fatalf("alice: status %d", r.status)
		}
	}
	for path := range things(c) {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, auth := range []string{"", "Bearer bob", "Bearer alic", "bearer alice", "Basic Ym9iOng="} {
				if r := w.do(method, path, "Authorization: "+auth); r.status != 401 {
					t.Errorf("%q: %s %s: status %d", auth, method, path, r.status)
				}
			}
			elsewhere := strings.Replace(path, "/some/", "/other/", 1)
			if r := w.do(method, elsewhere, "Authorization: Bearer bob"); r.status != 404 {
				t.Errorf("bob, from his own repository: %s %s: status %d, want 404", method, elsewhere, r.status)
			}
			if r := w.do(method, strings.Replace(path, host, "other.example", 1), "Authorization: Bearer alice"); r.status != 503 {
				t.Errorf("alice, from a registry that is not there: status %d", r.status)
			}
		}
	}
	if strings.Contains(w.logs.String(), "alice") || strings.Contains(w.logs.String(), "Ym9i") {
		t.Errorf("credentials in the log: %s", w.logs)
	}
}

// TestGrantsExpire: a registry is asked again after GrantTTL, and not before; what it takes back is gone.
func TestGrantsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g, c := newGuarded(t, func(c *registryproxy.Config) { c.GrantTTL, c.TagTTL = time.Minute, time.Minute })
		g.let("some/image Bearer alice")
		all := func(want int) {
			t.Helper()
			for path := range things(c) {
				if r := w.get(path, "Authorization: Bearer alice"); r.status != want {
					t.Errorf("%s: status %d, want %d", path, r.status, want)
				}
			}
		}
		all(200)
		before := len(w.up.requests())
		g.let()
		time.Sleep(59 * time.Second)
		all(200)
		if n := len(w.up.requests()) - before; n != 0 {
			t.Errorf("%d requests within GrantTTL: %q", n, w.up.requests()[before:])
		}
		time.Sleep(2 * time.Second)
		all(401)
		g.let("some/image Bearer alice")
		all(200)
		synctest.Wait()
	})
}

// TestOffline: while the registry is down, whom it has accepted goes on to read what is kept, for as long as the policy says.
func TestOffline(t *testing.T) {
	for name, test := range map[string]struct {
		policy, down time.Duration
		want         int
	}{
		"within the policy": {time.Hour, 30 * time.Minute, 200},
		"after it":          {time.Hour, 62 * time.Minute, 503},
		"without one":       {0, 2 * time.Minute, 503},
		"but within TTL":    {0, 5 * time.Second, 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, g, c := newGuarded(t, func(c *registryproxy.Config) {
					c.GrantTTL, c.TagTTL, c.OfflineFor = time.Minute, time.Minute, test.policy
				})
				g.let("some/image Bearer alice")
				for path := range things(c) {
					w.get(path, "Authorization: Bearer alice")
				}
				synctest.Wait()
				g.down.Store(true)
				time.Sleep(test.down)
				for path, want := range things(c) {
					r := w.get(path, "Authorization: Bearer alice")
					if r.status != test.want || (r.status == 200 && !bytes.Equal(r.body, want)) {
						t.Errorf("%s: status %d, want %d", path, r.status, test.want)
					}
					if r := w.get(path, "Authorization: Bearer bob"); r.status != 503 {
						t.Errorf("%s for somebody else: status %d, want 503", path, r.status)
					}
				}
				if r := w.get("/v2/?ns=" + host); r.status != 200 {
					t.Errorf("base: status %d", r.status)
				}
				if r := w.get("/v2/some/image/manifests/a?ns="+host, "Authorization: Bearer alice"); r.status != 503 {
					t.Errorf("a tag that was never asked for: status %d", r.status)
				}
				synctest.Wait()
			})
		})
	}
}

// TestOfflineIsSoon: once a registry was found down, clients whose answer is at hand do not wait for it each time.
func TestOfflineIsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g, c := newGuarded(t, func(c *registryproxy.Config) {
			c.GrantTTL, c.TagTTL, c.OfflineFor = time.Minute, time.Minute, time.Hour
		})
		g.let("some/image Bearer alice")
		for path := range things(c) {
			w.get(path, "Authorization: Bearer alice")
		}
		synctest.Wait()
		w.up.set(host, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { // packets are lost
			select {
			case <-r.Context().Done():
			case <-time.After(30 * time.Second):
			}
			rw.WriteHeader(http.StatusBadGateway)
		}))
		time.Sleep(2 * time.Minute)
		start := time.Now()
		for range 5 {
			for path := range things(c) {
				if r := w.get(path, "Authorization: Bearer alice"); r.status != 200 {
					t.Errorf("status %d", r.status)
				}
			}
		}
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("15 answers that are at hand took %v", took)
		}
		time.Sleep(time.Minute) // for what is under way
	})
}

// TestTagsDoNotLeadAstray: a tag that was answered has a manifest, also when the registry loses it the next moment.
func TestTagsDoNotLeadAstray(t *testing.T) {
	for _, digestHeader := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			h := memoryRegistry()
			c := fill(t, h, true)
			var gone atomic.Bool
			w.up.set(host, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if gone.Load() && r.Method == http.MethodGet {
					rw.WriteHeader(http.StatusNotFound)
					return
				}
				if !digestHeader {
					rw = &withoutDigest{rw}
				}
				h.ServeHTTP(rw, r)
			}))
			r := w.do(http.MethodHead, "/v2/some/image/manifests/v1?ns="+host)
			if r.status != 200 || r.header.Get("Docker-Content-Digest") != c.image.String() {
				t.Fatalf("tag: status %d, digest %q", r.status, r.header.Get("Docker-Content-Digest"))
			}
			gone.Store(true)
			r = w.get("/v2/some/image/manifests/" + c.image.String() + "?ns=" + host)
			if r.status != 200 || !bytes.Equal(r.body, c.manifest) || r.header.Get("Content-Type") != ocispec.MediaTypeImageManifest {
				t.Errorf("its manifest: status %d, %s", r.status, r.body)
			}
			gone.Store(false)
			if r := w.get("/v2/some/image/manifests/v1?ns=" + host); !bytes.Equal(r.body, c.manifest) {
				t.Errorf("status %d", r.status)
			}
			synctest.Wait()
		})
	}
}

// withoutDigest is a registry that does not say what a tag names.
type withoutDigest struct{ http.ResponseWriter }

func (w *withoutDigest) WriteHeader(status int) {
	w.Header().Del("Docker-Content-Digest")
	w.ResponseWriter.WriteHeader(status)
}

func (w *withoutDigest) Write(p []byte) (int, error) {
	w.Header().Del("Docker-Content-Digest")
	return w.ResponseWriter.Write(p)
}

// TestTagsMove: a tag is looked up again after TagTTL.
func TestTagsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := memoryRegistry()
		c := fill(t, h, true)
		w.up.set(host, h)
		get := func() reply { return w.get("/v2/some/image/manifests/v1?ns=" + host) }
		get()
		push(t, h, "some/image", "v1", ocispec.MediaTypeImageIndex, c.index)
		time.Sleep(9 * time.Second)
		if r := get(); !bytes.Equal(r.body, c.manifest) {
			t.Error("the tag was looked up within TagTTL")
		}
		time.Sleep(2 * time.Second)
		if r := get(); !bytes.Equal(r.body, c.index) || r.header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
			t.Error("the tag was not looked up after TagTTL")
		}
		synctest.Wait()
	})
}

// TestPublicContentOffline: what everybody may read can be read by everybody while the registry is down, though each got it with a token
// of his own; and only that.
func TestPublicContentOffline(t *testing.T) {
	for _, public := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w, g, c := newGuarded(t, func(c *registryproxy.Config) { c.OfflineFor = time.Hour })
			g.let("some/image Bearer alice")
			if public {
				g.let("some/image Bearer alice", "some/image Bearer nobody")
			}
			for path := range things(c) {
				if r := w.get(path, "Authorization: Bearer alice"); r.status != 200 {
					t.Fatalf("status %d", r.status)
				}
			}
			synctest.Wait()
			g.down.Store(true)
			time.Sleep(30 * time.Minute)
			for path, want := range things(c) {
				for _, auth := range []string{"", "Bearer another"} {
					r := w.get(path, "Authorization: "+auth)
					if ok := r.status == 200 && bytes.Equal(r.body, want); ok != public {
						t.Errorf("public %v, credentials %q: status %d", public, auth, r.status)
					}
				}
			}
			if n := w.up.count("HEAD " + host); public && n > 5 {
				t.Errorf("%d requests: %q", n, w.up.requests())
			}
			synctest.Wait()
		})
	}
}

// TestRestartWhileOffline: what a proxy knew serves the one after it.
func TestRestartWhileOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := func(c *registryproxy.Config) { c.OfflineFor = time.Hour }
		w, g, c := newGuarded(t, policy)
		g.let("some/image Bearer alice")
		for path := range things(c) {
			w.get(path, "Authorization: Bearer alice")
		}
		synctest.Wait()
		text, err := w.proxy.Remember()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "alice") {
			t.Errorf("credentials are written down: %s", text)
		}
		again := newWorld(t, policy, func(c *registryproxy.Config) { c.Blobs, c.Manifests = w.blobs, w.disk })
		again.up.set(host, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
		for _, bad := range []string{"", "{}", `{"version":1}`, `{"version":2,"key":""}`, string(text[:len(text)/2])} {
			if err := again.proxy.Recall([]byte(bad)); !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("%.30q: %v", bad, err)
			}
		}
		all := func(auth string, want int) {
			t.Helper()
			for path := range things(c) {
				if r := again.get(path, "Authorization: "+auth); r.status != want {
					t.Errorf("%q, %s: status %d, want %d", auth, path, r.status, want)
				}
			}
		}
		all("Bearer alice", 503)
		if err := again.proxy.Recall(text); err != nil {
			t.Fatal(err)
		}
		all("Bearer alice", 200)
		all("Bearer bob", 503)
		time.Sleep(59 * time.Minute)
		all("Bearer alice", 200)
		time.Sleep(10 * time.Minute)
		all("Bearer alice", 503)
		synctest.Wait()
	})
}

// TestClocksThatWerePutBack: facts of the future are of unknown age.
func TestClocksThatWerePutBack(t *testing.T) {
	var text []byte
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		w, g, c := newGuarded(t)
		g.let("some/image Bearer alice")
		for path := range things(c) {
			w.get(path, "Authorization: Bearer alice")
		}
		synctest.Wait()
		text, _ = w.proxy.Remember()
	})
	synctest.Test(t, func(t *testing.T) { // an hour before
		w, _, c := newGuarded(t)
		if err := w.proxy.Recall(text); err != nil {
			t.Fatal(err)
		}
		for path := range things(c) {
			if r := w.get(path, "Authorization: Bearer alice"); r.status != 401 {
				t.Errorf("status %d", r.status)
			}
		}
		synctest.Wait()
	})
}

// TestTokensThatExpire: a client whose token was good a moment ago is told to log in again, not that it may not.
func TestTokensThatExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g, c := newGuarded(t)
		g.let("some/image Bearer alice")
		path := "/v2/some/image/blobs/" + c.blobDigest.String() + "?ns=" + host
		if r := w.do(http.MethodHead, path, "Authorization: Bearer alice"); r.status != 200 {
			t.Fatalf("status %d", r.status)
		}
		g.let()
		if r := w.get(path, "Authorization: Bearer alice"); r.status != 401 || r.header.Get("WWW-Authenticate") != challenge {
			t.Errorf("status %d, challenge %q", r.status, r.header.Get("WWW-Authenticate"))
		}
		synctest.Wait()
	})
}

// TestTokensThatExpireInTheMiddle: the registry takes a connection back and the token with it. The client gets a broken connection, not a
// whole blob, and with a new token the rest, which is all that is read then.
func TestTokensThatExpireInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		guard := &guarded{Handler: g, asks: challenge}
		guard.let("some/image Bearer old")
		w.up.set(host, guard)
		g.let(3 * blockfmt.BlockSize)
		resp := w.start(t.Context(), http.MethodGet, bigPath, "Authorization: Bearer old")
		synctest.Wait()
		guard.let("some/image Bearer new")
		g.mu.Lock()
		g.cut[3*blockfmt.BlockSize] = true
		g.mu.Unlock()
		g.let(len(big))
		if body, err := io.ReadAll(resp.Body); err == nil || !bytes.Equal(body, big[:3*blockfmt.BlockSize]) {
			t.Errorf("%d bytes, %v", len(body), err)
		}
		resp.Body.Close()
		synctest.Wait()
		before := len(w.up.requests())
		if r := w.get(bigPath, "Authorization: Bearer new"); r.err != nil || !bytes.Equal(r.body, big) {
			t.Errorf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		if got, want := w.up.requests()[before:], fmt.Sprintf("bytes=%d-%d", 3*blockfmt.BlockSize, len(big)-1); !strings.HasSuffix(got[len(got)-1], want) {
			t.Errorf("requests %q, want the last one to be for %s", got, want)
		}
	})
}

// TestOneQuestionForManyClients: clients with the same credentials that ask for a tag at the same time cost the registry a HEAD and a GET.
func TestOneQuestionForManyClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := memoryRegistry()
		c := fill(t, h, true)
		gate := make(chan struct{})
		w.up.set(host, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			<-gate
			h.ServeHTTP(rw, r)
		}))
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if r := w.get("/v2/some/image/manifests/v1?ns=" + host); r.status != 200 || !bytes.Equal(r.body, c.manifest) {
					t.Errorf("status %d", r.status)
				}
			})
		}
		ctx, leave := context.WithCancel(t.Context())
		wg.Go(func() { // one that does not wait
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy/v2/some/image/manifests/v1?ns="+host, nil)
			if _, err := (inProcess{w.proxy}).RoundTrip(req); err == nil {
				t.Error("an answer for one who left")
			}
		})
		synctest.Wait()
		leave()
		synctest.Wait()
		close(gate)
		wg.Wait()
		if got := w.up.requests(); len(got) != 2 || w.up.count("HEAD") != 1 || w.up.count("GET") != 1 {
			t.Errorf("%q", got)
		}
	})
}
