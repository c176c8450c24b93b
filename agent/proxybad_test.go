package agent

import (
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/registryproxy"
)

// TestBadRegistriesThroughTheProxy: whatever a registry does wrong, a client of the node's proxy gets an answer that says so, soon, and
// nobody's credentials are in the log.
func TestBadRegistriesThroughTheProxy(t *testing.T) {
	body := noise(1, 100_000)
	d := digest.FromBytes(body).String()
	blob, manifest := "/v2/some/image/blobs/"+d, "/v2/some/image/manifests/v1"
	head := func(rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
		return r.Method == http.MethodHead
	}
	loop := func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, r.URL.Path, http.StatusMovedPermanently)
	}
	zipped := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Encoding", "gzip")
		w := gzip.NewWriter(rw)
		_, _ = w.Write(body) // the proxy may be gone
		_ = w.Close()
	}
	for name, test := range map[string]struct {
		path   string
		serve  http.HandlerFunc
		status int
	}{
		"moved in a circle, blob":     {blob, loop, 502},
		"moved in a circle, manifest": {manifest, loop, 502},
		"to a place with a password": {blob, func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "http://ann:secret@127.0.0.1:1/?signature=secret", http.StatusFound)
		}, 503},
		"busy for two minutes": {blob, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "120")
			rw.WriteHeader(http.StatusTooManyRequests)
		}, 429},
		"blob in gzip": {blob, func(rw http.ResponseWriter, r *http.Request) {
			if !head(rw, r) {
				rw.Header().Del("Content-Length")
				zipped(rw, r)
			}
		}, 502},
		"manifest in gzip": {manifest, zipped, 502},
		"fewer bytes than announced": {blob, func(rw http.ResponseWriter, r *http.Request) {
			if !head(rw, r) {
				rw.Header().Set("Content-Length", "99999")
				_, _ = rw.Write(body[:99_999])
			}
		}, 502},
		"more bytes than announced": {blob, func(rw http.ResponseWriter, r *http.Request) {
			if !head(rw, r) {
				rw.Header().Set("Content-Length", "100001")
				_, _ = rw.Write(append(body, 0))
			}
		}, 502},
		"no length, and more bytes": {blob, func(rw http.ResponseWriter, r *http.Request) {
			if !head(rw, r) {
				rw.Header().Del("Content-Length")
				_, _ = rw.Write(append(body, 0))
			}
		}, 502},
		"a length that is none": {blob, func(rw http.ResponseWriter, r *http.Request) {
			say(rw, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n")
		}, 503},
		"two lengths": {blob, func(rw http.ResponseWriter, r *http.Request) {
			say(rw, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 100000\r\n\r\n")
		}, 503},
		"a realm at the metadata service": {blob, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/token"`)
			rw.WriteHeader(http.StatusUnauthorized)
		}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.serve)
			t.Cleanup(server.Close)
			cfg := proxyConfig(t, strings.TrimPrefix(server.URL, "http://"))
			n := startNode(t, cfg)
			start := time.Now()
			status, header, text, err := ask(t, "http://"+cfg.Proxy.Listen+test.path)
			if status != test.status || err != nil {
				t.Errorf("status %d, %v: %.300s; want %d", status, err, text, test.status)
			}
			if seconds, err := strconv.Atoi(header.Get("Retry-After")); status == 429 && (err != nil || seconds < 30) {
				t.Errorf("Retry-After %q", header.Get("Retry-After"))
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			if log := n.log.String(); strings.Contains(log, "secret") || strings.Contains(log, "YW5uOnNlY3JldA") {
				t.Errorf("credentials in the log: %s", log)
			}
		})
	}
}

// ask sends a request with credentials.
func ask(t *testing.T, url string) (status int, header http.Header, body []byte, err error) {
	t.Helper()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	req.SetBasicAuth("ann", "secret")
	resp, err := tr.RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, body, err
}

// say answers with bytes that net/http would not send.
func say(rw http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, text) // the proxy may be gone
	_ = conn.Close()
}

// pipes is a listener whose connections are in this process, so that they run on virtual time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error { close(p.done); return nil }

func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// TestSlowLoris: clients that do not get to the end of a request lose their connections, however they keep them busy.
func TestSlowLoris(t *testing.T) {
	for name, slow := range map[string]struct {
		begin, more string // more every second
		within      time.Duration
	}{
		"says nothing":               {"", "", 11 * time.Second},
		"stops in the first line":    {"GET /v2/", "", 11 * time.Second},
		"never ends the first line":  {"GET /", "x", 11 * time.Second},
		"never ends its headers":     {"GET /v2/ HTTP/1.1\r\nHost: x\r\n", "X-More: y\r\n", 11 * time.Second},
		"never ends its body":        {"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", "x", 31 * time.Second},
		"asks once and then nothing": {"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", "", 121 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler, err := registryproxy.New(registryproxy.Config{})
				must(t, err)
				defer handler.Close()
				p := &proxy{handler: handler, log: slog.New(slog.DiscardHandler)}
				l := pipes{make(chan net.Conn), make(chan struct{})}
				served := make(chan error, 1)
				ctx, end := context.WithCancel(t.Context())
				go func() { served <- p.serve(ctx, l) }()
				client, server := net.Pipe()
				l.conns <- server
				start := time.Now()
				var writing sync.WaitGroup
				writing.Go(func() { drip(client, slow.begin, slow.more) })
				text, err := io.ReadAll(client)
				if took := time.Since(start); err != nil || took > slow.within {
					t.Errorf("cut off after %v with %q, %v", took, text, err)
				}
				must(t, client.Close())
				writing.Wait()
				end()
				must(t, <-served)
			})
		})
	}
}

// drip writes until nobody reads.
func drip(c net.Conn, begin, more string) {
	_, err := io.WriteString(c, begin)
	for err == nil && more != "" {
		<-time.After(time.Second)
		_, err = io.WriteString(c, more)
	}
}
