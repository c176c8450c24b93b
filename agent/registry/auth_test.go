package registry_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

// guarded is a registry with a token server of its own.
type guarded struct {
	host, tokens string // host:port
	user         string // "name:password" that the token server wants, or a refresh token
	good         atomic.Int64
	issued       atomic.Int32
	requests     atomic.Int32
	basic        bool // asks for the user itself
	expiresIn    int
}

func startGuarded(t *testing.T, user string) *guarded {
	g := &guarded{user: user}
	g.tokens = serve(t, g.issue)
	g.host = serve(t, g.serve)
	return g
}

func (g *guarded) allowed(r *http.Request) bool {
	if r.Method == http.MethodPost {
		return r.PostFormValue("grant_type") == "refresh_token" && r.PostFormValue("refresh_token") == g.user
	}
	name, password, _ := r.BasicAuth()
	return g.user == "" || name+":"+password == g.user
}

func (g *guarded) issue(w http.ResponseWriter, r *http.Request) {
	if !g.allowed(r) || r.FormValue("scope") != "repository:some/image:pull" || r.FormValue("service") != "here" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	g.issued.Add(1)
	token := g.good.Add(1)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": fmt.Sprint("token-", token), "expires_in": g.expiresIn})
}

func (g *guarded) serve(w http.ResponseWriter, r *http.Request) {
	g.requests.Add(1)
	if g.basic {
		if name, password, _ := r.BasicAuth(); name+":"+password != g.user {
			w.Header().Set("WWW-Authenticate", `Basic realm="me"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	} else if r.Header.Get("Authorization") != fmt.Sprint("Bearer token-", g.good.Load()) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="here",scope="repository:some/image:pull"`, g.tokens))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	partial(w, r, content)
}

func (g *guarded) read(t *testing.T, c *registry.Client) error {
	t.Helper()
	got, _, err := repository(t, c, g.host).Manifest(t.Context(), digest.FromBytes(content))
	if err == nil && !bytes.Equal(got, content) {
		t.Error("wrong bytes")
	}
	return err
}

func TestAnonymousToken(t *testing.T) {
	g := startGuarded(t, "")
	c, _ := newClient(t, nil)
	for range 3 {
		if err := g.read(t, c); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.issued.Load(); n != 1 {
		t.Errorf("%d tokens, want 1", n)
	}
	if n := g.requests.Load(); n != 4 {
		t.Errorf("%d requests, want the challenge and three", n)
	}
}

// TestTokenExpires: a token that is refused while a blob is mounted is renewed once, by whoever finds out.
func TestTokenExpires(t *testing.T) {
	g := startGuarded(t, "me:secret")
	c, logs := newClient(t, nil)
	c.SetCredentials(g.host, registry.Credentials{Username: "me", Password: "secret"})
	for round := range 3 {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if err := g.read(t, c); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := int(g.issued.Load()); n != round+1 {
			t.Errorf("%d tokens, want %d", n, round+1)
		}
		g.good.Store(100 * int64(round+1)) // the registry forgets the tokens
	}
	if n := logs.count("\n"); n != 0 {
		t.Errorf("%d log lines", n)
	}
}

func TestCredentials(t *testing.T) {
	for name, test := range map[string]struct {
		user  string
		basic bool
		cred  registry.Credentials
		want  error
	}{
		"token for user":  {"me:secret", false, registry.Credentials{Username: "me", Password: "secret"}, nil},
		"wrong password":  {"me:secret", false, registry.Credentials{Username: "me", Password: "other"}, blockfmt.ErrDenied},
		"none":            {"me:secret", false, registry.Credentials{}, blockfmt.ErrDenied},
		"basic":           {"me:secret", true, registry.Credentials{Username: "me", Password: "secret"}, nil},
		"wrong, basic":    {"me:secret", true, registry.Credentials{Username: "me", Password: "other"}, blockfmt.ErrDenied},
		"none, basic":     {"me:secret", true, registry.Credentials{}, blockfmt.ErrDenied},
		"identity token":  {"refresh-me", false, registry.Credentials{IdentityToken: "refresh-me"}, nil},
		"registry token":  {"nobody", false, registry.Credentials{RegistryToken: "token-0"}, nil},
		"stale registry":  {"nobody", false, registry.Credentials{RegistryToken: "token-x"}, blockfmt.ErrDenied},
		"wrong, identity": {"refresh-me", false, registry.Credentials{IdentityToken: "x"}, blockfmt.ErrDenied},
	} {
		for _, pushed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/pushed=%v", name, pushed), func(t *testing.T) {
				g := startGuarded(t, test.user)
				g.basic = test.basic
				keys := &keychain{}
				c, _ := newClient(t, func(cfg *registry.Config) { cfg.Keychain = keys })
				if pushed {
					c.SetCredentials(g.host, test.cred)
				} else {
					keys.set(test.cred)
				}
				if err := g.read(t, c); !errors.Is(err, test.want) {
					t.Errorf("error %v, want %v", err, test.want)
				}
				if n := g.requests.Load(); n > 2 {
					t.Errorf("%d requests: a refusal is not tried again", n)
				}
			})
		}
	}
}

// keychain gives what was set last, as a credential helper does.
type keychain struct {
	mu   sync.Mutex
	cred registry.Credentials
}

func (k *keychain) set(c registry.Credentials) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cred = c
}

func (k *keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return authn.FromConfig(authn.AuthConfig{
		Username: k.cred.Username, Password: k.cred.Password, IdentityToken: k.cred.IdentityToken, RegistryToken: k.cred.RegistryToken,
	}), nil
}

// TestCredentialsChange: when the password changes, the helper is asked again; pushed credentials replace older ones.
func TestCredentialsChange(t *testing.T) {
	for _, basic := range []bool{true, false} {
		g := startGuarded(t, "me:one")
		g.basic = basic
		keys := &keychain{cred: registry.Credentials{Username: "me", Password: "one"}}
		c, _ := newClient(t, func(cfg *registry.Config) { cfg.Keychain = keys })
		if err := g.read(t, c); err != nil {
			t.Fatal(err)
		}
		g.user = "me:two"
		g.good.Store(100)
		keys.set(registry.Credentials{Username: "me", Password: "two"})
		if err := g.read(t, c); err != nil {
			t.Errorf("basic %v: after the helper gives another password: %v", basic, err)
		}
		g.user = "me:three"
		g.good.Store(200)
		if err := g.read(t, c); !errors.Is(err, blockfmt.ErrDenied) {
			t.Errorf("basic %v: with the old password: %v", basic, err)
		}
		c.SetCredentials(g.host, registry.Credentials{Username: "me", Password: "three"})
		if err := g.read(t, c); err != nil {
			t.Errorf("basic %v: with pushed credentials: %v", basic, err)
		}
	}
}

// TestTokenServerFaults: a token server that fails is the registry's failure, and bounded like it.
func TestTokenServerFaults(t *testing.T) {
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		want  error
	}{
		"unavailable": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, blockfmt.ErrTransient},
		"not found":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, blockfmt.ErrNotFound},
		"no answer":   {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, blockfmt.ErrTransient},
		"nonsense":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{")) }, blockfmt.ErrDenied},
		"no token":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }, blockfmt.ErrDenied},
		"injection":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"a\r\nX-Y: z"}`)) }, blockfmt.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startGuarded(t, "")
			g.tokens = serve(t, test.serve)
			c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 2 })
			if err := g.read(t, c); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

// TestTokenServerHangs: those who wait for another one's token wait no longer than they would for their own.
func TestTokenServerHangs(t *testing.T) {
	g := startGuarded(t, "")
	g.tokens = serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.Timeout = 1500 * time.Millisecond })
	start := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := g.read(t, c); !errors.Is(err, blockfmt.ErrTransient) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestDockerHub: the names that engines use for it are one.
func TestDockerHub(t *testing.T) {
	for _, host := range []string{"docker.io", "registry-1.docker.io", "index.docker.io"} {
		if got := registry.CanonicalHost(host); got != "index.docker.io" {
			t.Errorf("%s: %s", host, got)
		}
	}
	c, _ := newClient(t, nil)
	for ref, want := range map[string]string{"alpine": "index.docker.io/library/alpine", "docker.io/library/alpine:3": "index.docker.io/library/alpine", "localhost:5000/a/b@" + digest.FromString("").String(): "localhost:5000/a/b"} {
		if r, err := c.Repository(ref); err != nil || r.String() != want {
			t.Errorf("%s: %v, %v; want %s", ref, r, err, want)
		}
	}
}

// TestRedirectKeepsCredentials: the storage that a registry redirects to gets the request, and not the credentials,
// even if it is the same host on another port.
func TestRedirectKeepsCredentials(t *testing.T) {
	var leaked atomic.Value
	storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked.Store(a)
		}
		if r.Header.Get("Range") == "" {
			t.Error("the storage is not asked for a range")
		}
		partial(w, r, content)
	})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="me"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, "http://"+storage+"/data?signature=x", http.StatusTemporaryRedirect)
	})
	c, _ := newClient(t, nil)
	c.SetCredentials(host, registry.Credentials{Username: "me", Password: "secret"})
	got, err := calls["Range"](t.Context(), repository(t, c, host))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if a := leaked.Load(); a != nil {
		t.Errorf("the storage got %q", a)
	}
}

// TestRedirectIsRemembered: the second read of a blob goes to the storage at once; when the storage refuses, the registry is
// asked again.
func TestRedirectIsRemembered(t *testing.T) {
	var signature, registryCalls, storageCalls atomic.Int32
	storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
		storageCalls.Add(1)
		if r.URL.Query().Get("signature") != fmt.Sprint(signature.Load()) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		partial(w, r, content)
	})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		registryCalls.Add(1)
		http.Redirect(w, r, fmt.Sprintf("http://%s/data?signature=%d", storage, signature.Load()), http.StatusTemporaryRedirect)
	})
	c, _ := newClient(t, nil)
	read := func(want, wantStorage int32) {
		t.Helper()
		registryCalls.Store(0)
		storageCalls.Store(0)
		if got, err := calls["Range"](t.Context(), repository(t, c, host)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if registryCalls.Load() != want || storageCalls.Load() != wantStorage {
			t.Errorf("%d requests to the registry, %d to the storage; want %d and %d", registryCalls.Load(), storageCalls.Load(), want, wantStorage)
		}
	}
	read(1, 1)
	read(0, 1)
	signature.Add(1) // the old one expires
	read(1, 2)
	read(0, 1)
	c.SetCredentials(host, registry.Credentials{Username: "other", Password: "user"})
	read(1, 1)
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "manifests") {
			partial(w, r, content)
			return
		}
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshake that is refused
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	read := func(change func(*registry.Config)) error {
		c, _ := newClient(t, func(cfg *registry.Config) {
			cfg.Attempts, cfg.StallTimeout, cfg.Timeout = 1, 20*time.Second, 30*time.Second // slow machines finish a handshake by then
			change(cfg)
		})
		_, err := calls["Manifest"](context.Background(), repository(t, c, host))
		return err
	}
	if err := read(func(cfg *registry.Config) { cfg.TLS, cfg.RootCAs = []string{host}, pool }); err != nil {
		t.Errorf("with the right CA: %v", err)
	}
	if err := read(func(cfg *registry.Config) { cfg.TLS = []string{"127.0.0.1"} }); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA: %v", err)
	}
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.TLS, cfg.RootCAs = []string{host}, pool })
	if _, err := calls["Blob"](t.Context(), repository(t, c, host)); !errors.Is(err, blockfmt.ErrDenied) {
		t.Errorf("redirect to plain HTTP: %v", err)
	}
}
