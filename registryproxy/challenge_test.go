package registryproxy_test

import (
	"bytes"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/registryproxy"
)

const (
	basic = `Basic realm="registry.example"`
	ann   = "Authorization: Basic YW5uOnNlY3JldA=="
	bob   = "Authorization: Basic Ym9iOnNlY3JldA=="
)

// lost is a registry behind a network that loses packets.
func lost(rw http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(30 * time.Second):
	}
	rw.WriteHeader(http.StatusBadGateway)
}

// TestLoginsWhileOffline: a registry that asked for a user and password does so while it is down too, so that clients send them, and those
// whose it has accepted read what is kept. Nobody else does, and whom it asks says nothing of what is kept.
func TestLoginsWhileOffline(t *testing.T) {
	for name, pinged := range map[string]bool{"by clients that ask for the base first": true, "by clients that do not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				policy := func(c *registryproxy.Config) { c.OfflineFor = time.Hour }
				w, g, c := newGuarded(t, policy)
				g.asks = basic
				g.let("some/image Basic YW5uOnNlY3JldA==")
				if pinged {
					w.get("/v2/?ns=" + host)
				} else {
					w.get("/v2/some/image/manifests/v1?ns=" + host)
				}
				for path := range things(c) {
					w.get(path, ann)
				}
				synctest.Wait()
				text, err := w.proxy.Remember()
				if err != nil {
					t.Fatal(err)
				}
				again := newWorld(t, policy, func(c *registryproxy.Config) { c.Blobs, c.Manifests = w.blobs, w.disk })
				again.up.set(host, http.HandlerFunc(lost))
				if err := again.proxy.Recall(text); err != nil {
					t.Fatal(err)
				}
				g.down.Store(true)
				for _, w := range []*world{w, again} {
					checkOfflineLogins(t, w, c)
				}
				time.Sleep(time.Hour + 6*time.Minute)
				for path := range things(c) {
					if r := w.get(path); r.status != 503 {
						t.Errorf("after the policy: status %d", r.status)
					}
				}
				time.Sleep(time.Minute) // for what is under way
			})
		})
	}
}

func checkOfflineLogins(t *testing.T, w *world, c content) {
	t.Helper()
	start := time.Now()
	for path, want := range things(c) {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			if r := w.do(method, path); r.status != 401 || r.header.Get("WWW-Authenticate") != basic || r.header.Get("Docker-Content-Digest") != "" {
				t.Errorf("%s without credentials: status %d, %v", path, r.status, r.header)
			}
		}
		if r := w.get(path, ann); r.status != 200 || !bytes.Equal(r.body, want) {
			t.Errorf("%s for who was accepted: status %d", path, r.status)
		}
	}
	if r := w.get("/v2/?ns=" + host); r.status != 401 || r.header.Get("WWW-Authenticate") != basic {
		t.Errorf("base: status %d, %v", r.status, r.header)
	}
	if r := w.get("/v2/?ns="+host, bob); r.status != 200 { // what he may read is asked when he reads it
		t.Errorf("base with credentials: status %d", r.status)
	}
	for range 2 { // what is kept, and what is not
		for _, path := range []string{"/v2/some/image/manifests/v1?ns=" + host, "/v2/some/image/manifests/a?ns=" + host} {
			if r := w.get(path); r.status != 401 {
				t.Errorf("%s without credentials: status %d", path, r.status)
			}
		}
	}
	if took := time.Since(start); took > 11*time.Second { // it is asked once
		t.Errorf("answers that are at hand took %v", took)
	}
	for path := range things(c) {
		if r := w.get(path, bob); r.status != 503 {
			t.Errorf("%s for somebody else: status %d", path, r.status)
		}
	}
}

// TestNoLoginsWhileOffline: clients are sent to no server of tokens that is as unreachable, and not asked where everybody may read.
func TestNoLoginsWhileOffline(t *testing.T) {
	for name, test := range map[string]struct {
		asks   string
		tokens []string
		down   func(rw http.ResponseWriter, r *http.Request)
		status int
	}{
		"tokens":            {challenge, []string{"some/image Bearer alice"}, lost, 503},
		"either":            {`Basic realm="x", Bearer realm="https://auth.example/token"`, []string{"some/image Bearer alice"}, lost, 503},
		"nonsense":          {"Basic " + string(bytes.Repeat([]byte("x"), 2000)), []string{"some/image Bearer alice"}, lost, 503},
		"public content":    {basic, []string{"some/image Bearer alice", "some/image Bearer nobody"}, lost, 200},
		"it asks no longer": {basic, []string{"some/image Bearer alice"}, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(403) }, 403},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, g, c := newGuarded(t, func(c *registryproxy.Config) { c.OfflineFor = time.Hour })
				g.asks = test.asks
				g.let(test.tokens...)
				w.get("/v2/some/image/manifests/v1?ns=" + host)
				for path := range things(c) {
					w.get(path, "Authorization: Bearer alice")
				}
				synctest.Wait()
				w.up.set(host, http.HandlerFunc(test.down))
				time.Sleep(10 * time.Minute)
				for path := range things(c) {
					if r := w.get(path); r.status != test.status {
						t.Errorf("%s: status %d, want %d", path, r.status, test.status)
					}
				}
				time.Sleep(time.Minute) // for what is under way
			})
		})
	}
}

// TestSlowIsNotDown: a registry that asks for a user and password elsewhere, and takes its time, gives everybody what it gives everybody.
func TestSlowIsNotDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g, c := newGuarded(t, func(c *registryproxy.Config) { c.OfflineFor = time.Hour })
		g.asks = basic
		if r := w.get("/v2/?ns=" + host); r.status != 401 {
			t.Fatalf("base: status %d", r.status)
		}
		g.let("some/image ")
		w.up.set(host, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(5 * time.Second)
			g.ServeHTTP(rw, r)
		}))
		for path, want := range things(c) {
			if r := w.get(path); r.status != 200 || !bytes.Equal(r.body, want) {
				t.Errorf("%s: status %d", path, r.status)
			}
		}
		synctest.Wait()
	})
}
