package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

// blobCall asks for a blob of some/image.
func blobCall(host string) registry.Call {
	return registry.Call{Method: http.MethodGet, Host: host, Repo: "some/image", Kind: "blobs", Ref: "sha256:" + strings.Repeat("ab", 32), Header: http.Header{}}
}

// do returns status, body and who answered.
func do(t *testing.T, c *registry.Client, call registry.Call) (status int, body, from string, err error) {
	t.Helper()
	a, err := c.Do(t.Context(), call)
	if err != nil {
		return 0, "", "", err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	return a.StatusCode, string(text), a.From, err
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// TestDoSendsWhatTheCallerSays: path, query and headers arrive, and nothing else of the caller's.
func TestDoSendsWhatTheCallerSays(t *testing.T) {
	var got http.Request
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = *r
		w.WriteHeader(http.StatusPartialContent)
	})
	c, _ := newClient(t, nil)
	call := blobCall(host)
	call.Kind, call.Ref, call.Query = "tags", "list", url.Values{"n": {"2"}, "last": {"a&b"}}
	call.Header, call.Authorization = http.Header{"Accept": {"a/b", "c/d"}, "Range": {"bytes=0-1"}}, "Bearer secret"
	if code, _, from, err := do(t, c, call); code != 206 || from != host || err != nil {
		t.Fatalf("status %d from %q, %v", code, from, err)
	}
	if got.Method != "GET" || got.URL.Path != "/v2/some/image/tags/list" || got.URL.Query().Get("last") != "a&b" {
		t.Errorf("%s %s", got.Method, got.URL)
	}
	for k, want := range map[string]string{"Accept": "a/b", "Range": "bytes=0-1", "Authorization": "Bearer secret", "Accept-Encoding": "identity", "User-Agent": "xylem"} {
		if got.Header.Get(k) != want {
			t.Errorf("%s: %q, want %q", k, got.Header.Get(k), want)
		}
	}
	if _, _, _, err := do(t, c, registry.Call{Method: http.MethodGet, Host: host}); err != nil || got.URL.Path != "/v2/" {
		t.Errorf("base: %s, %v", got.URL, err)
	}
}

// TestMirrors: they are asked in turn, without the client's credentials, and the registry has the last word.
func TestMirrors(t *testing.T) {
	type answers = []http.HandlerFunc // two mirrors and the registry
	down := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for name, test := range map[string]struct {
		answers answers
		avoid   []int
		status  int
		from    int
		err     error
	}{
		"the first":             {answers{says("0"), says("1"), says("2")}, nil, 200, 0, nil},
		"the second":            {answers{status(404), says("1"), says("2")}, nil, 200, 1, nil},
		"the registry":          {answers{status(401), status(403), says("2")}, nil, 200, 2, nil},
		"mirrors are down":      {answers{down, status(502), says("2")}, nil, 200, 2, nil},
		"nobody has it":         {answers{status(404), status(404), status(404)}, nil, 404, 2, nil},
		"nobody may":            {answers{status(404), status(404), status(401)}, nil, 401, 2, nil},
		"all are down":          {answers{down, down, down}, nil, 0, 2, blockfmt.ErrTransient},
		"registry is down":      {answers{says("0"), down, down}, nil, 200, 0, nil},
		"the first lied":        {answers{says("0"), says("1"), says("2")}, []int{0}, 200, 1, nil},
		"both lied":             {answers{says("0"), says("1"), says("2")}, []int{0, 1}, 200, 2, nil},
		"all lied":              {answers{says("0"), says("1"), says("2")}, []int{0, 1, 2}, 0, 2, blockfmt.ErrCorrupt},
		"encoded by the mirror": {answers{encoded, says("1"), says("2")}, nil, 200, 1, nil},
		"encoded by all":        {answers{encoded, encoded, encoded}, nil, 0, 2, blockfmt.ErrUnsupported},
		"mirror redirects away": {answers{redirect("file:///etc/passwd"), says("1"), says("2")}, nil, 200, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var hosts []string
			for i, h := range test.answers {
				hosts = append(hosts, serve(t, func(w http.ResponseWriter, r *http.Request) {
					if sent := r.Header.Get("Authorization"); (sent != "") != (i == 2) {
						t.Errorf("host %d got credentials %q", i, sent)
					}
					h(w, r)
				}))
			}
			c, _ := newClient(t, func(cfg *registry.Config) {
				cfg.Attempts = 2
				cfg.Hosts = map[string]registry.HostConfig{hosts[2]: {Mirrors: hosts[:2]}}
			})
			call := blobCall(hosts[2])
			call.Authorization = "Bearer secret"
			for _, i := range test.avoid {
				call.Avoid = append(call.Avoid, hosts[i])
			}
			code, body, from, err := do(t, c, call)
			if !errors.Is(err, test.err) || code != test.status {
				t.Fatalf("status %d, %v; want %d, %v", code, err, test.status, test.err)
			}
			if err == nil && from != hosts[test.from] {
				t.Errorf("from %q, want host %d", from, test.from)
			}
			if code == 200 && body != fmt.Sprint(test.from) {
				t.Errorf("body %q", body)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("credentials in %v", err)
			}
		})
	}
}

func encoded(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	fmt.Fprint(w, "x")
}

func redirect(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusTemporaryRedirect) }
}

// TestRefusalsAreAnswers: the registry's own 4xx comes with its headers and body; others are errors.
func TestRefusalsAreAnswers(t *testing.T) {
	for code, want := range map[int]error{400: nil, 401: nil, 403: nil, 404: nil, 416: nil, 418: nil,
		408: blockfmt.ErrTransient, 429: blockfmt.ErrTransient, 500: blockfmt.ErrTransient, 503: blockfmt.ErrTransient, 501: blockfmt.ErrUnsupported} {
		host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.example/"`)
			w.WriteHeader(code)
			fmt.Fprint(w, "its words")
		})
		c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 1 })
		a, err := c.Do(t.Context(), blobCall(host))
		if !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", code, err, want)
		}
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(a.Body)
		a.Body.Close()
		if a.StatusCode != code || string(text) != "its words" || a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%d: status %d, %q, %v", code, a.StatusCode, text, a.Header)
		}
	}
}

// TestStorageIsNotTheRegistry: what storage that a registry redirects to refuses is no refusal of the registry's.
func TestStorageIsNotTheRegistry(t *testing.T) {
	for _, code := range []int{401, 403, 404} {
		var sent atomic.Value
		sent.Store("")
		storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
			sent.Store(r.Header.Get("Authorization"))
			w.WriteHeader(code)
		})
		host := serve(t, redirect("http://"+storage+"/x?signature=hidden"))
		c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 1 })
		call := blobCall(host)
		call.Authorization = "Bearer secret"
		_, _, _, err := do(t, c, call)
		if !errors.Is(err, blockfmt.ErrTransient) || sent.Load() != "" {
			t.Errorf("%d: %v; storage got %q", code, err, sent.Load())
		}
		if err != nil && (strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%d: %v", code, err)
		}
	}
}

// TestErrorsDoNotTellSignatures: a URL in an error has neither query nor user.
func TestErrorsDoNotTellSignatures(t *testing.T) {
	host := serve(t, redirect("http://hidden:hidden@127.0.0.1:1/x?signature=hidden"))
	c, logs := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 2 })
	_, _, _, err := do(t, c, blobCall(host))
	if !errors.Is(err, blockfmt.ErrTransient) || strings.Contains(err.Error(), "hidden") || logs.count("hidden") != 0 {
		t.Errorf("%v", err)
	}
}

// TestBusyRegistriesSayWhen: the time that a registry asks for reaches the caller.
func TestBusyRegistriesSayWhen(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "17")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 1 })
	for range 2 { // asked, and not asked again so soon
		_, _, _, err := do(t, c, blobCall(host))
		var later interface{ RetryAfter() int }
		if !errors.As(err, &later) || !errors.Is(err, blockfmt.ErrTransient) || later.RetryAfter() < 16 || later.RetryAfter() > 17 {
			t.Errorf("%v", err)
		}
	}
}

// TestWhereRegistriesMaySend: a registry at a public address cannot make this machine connect to private ones. Loopback stands for
// public addresses here: what is public is a rule of the guard, tested by itself.
func TestWhereRegistriesMaySend(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "2001:4860:4860::8888": true, "1.1.1.1": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "100.64.0.1": false, "127.0.0.1": false, "::1": false,
		"169.254.169.254": false, "fe80::1": false, "fd00::1": false, "0.0.0.0": false, "224.0.0.1": false,
	} {
		if got := registry.IsPublic(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	var reached atomic.Int32
	inside := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reached.Add(1)
		fmt.Fprint(w, `{"token":"x"}`)
	})
	challenge := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, inside))
		w.WriteHeader(http.StatusUnauthorized)
	}
	for name, h := range map[string]http.HandlerFunc{"redirect": redirect("http://" + inside + "/"), "realm": challenge} {
		for _, test := range []struct {
			public, listed, trusted bool // the registry's address; the registry and the other host, in the configuration
			reaches                 bool
		}{{true, false, false, false}, {true, true, false, false}, {true, false, true, true}, {false, false, false, true}, {false, true, false, true}} {
			reached.Store(0)
			host := serve(t, h)
			c, _ := newClient(t, func(cfg *registry.Config) {
				cfg.Attempts, cfg.Hosts = 1, map[string]registry.HostConfig{}
				if test.listed {
					cfg.Hosts[host] = registry.HostConfig{}
				}
				if test.trusted {
					cfg.Hosts[inside] = registry.HostConfig{}
				}
			})
			if test.public {
				c.BelievePublic()
			}
			call := blobCall(host)
			call.Own = name == "realm"
			code, _, _, err := do(t, c, call)
			if got := reached.Load() > 0; got != test.reaches {
				t.Errorf("%s, %+v: inside was reached: %v (status %d, %v)", name, test, got, code, err)
			}
			if !test.reaches && name == "redirect" && !errors.Is(err, blockfmt.ErrDenied) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestMetadataServices: no registry, redirect or realm leads to a link-local address, whatever the registry's own is.
func TestMetadataServices(t *testing.T) {
	realm := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/latest/"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	for name, h := range map[string]http.HandlerFunc{
		"redirect": redirect("http://169.254.169.254/latest/meta-data/"), "realm": realm, "realm for nobody": realm,
	} {
		host := serve(t, h)
		c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts, cfg.Timeout = 1, 5*time.Second })
		call := blobCall(host)
		call.Own, call.Anonymous = name == "realm", name == "realm for nobody"
		start := time.Now()
		code, _, _, err := do(t, c, call)
		if name == "redirect" && !errors.Is(err, blockfmt.ErrDenied) || name != "redirect" && code != 401 {
			t.Errorf("%s: status %d, %v", name, code, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: %v: it was connected to", name, took)
		}
	}
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 1 })
	if _, _, _, err := do(t, c, blobCall("169.254.169.254")); !errors.Is(err, blockfmt.ErrDenied) {
		t.Errorf("named by the client: %v", err)
	}
}

// TestOwnCredentials: this node's are used where the caller has none and says so, and never instead of the caller's.
func TestOwnCredentials(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user == "node" && password == "secret" || r.Header.Get("Authorization") == "Bearer client" {
			fmt.Fprint(w, user)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	for _, test := range []struct {
		own    bool
		auth   string
		status int
		body   string
	}{
		{true, "", 200, "node"}, {false, "", 401, ""}, {true, "Bearer client", 200, ""}, {true, "Bearer other", 401, ""}, {false, "Bearer client", 200, ""},
	} {
		c, _ := newClient(t, func(cfg *registry.Config) { cfg.Keychain = nodeKeychain{} })
		call := blobCall(host)
		call.Own, call.Authorization = test.own, test.auth
		code, body, _, err := do(t, c, call)
		if code != test.status || body != test.body || err != nil {
			t.Errorf("%+v: status %d, %q, %v", test, code, body, err)
		}
	}
}

// TestAnonymousCalls: they get the token that everybody gets, and no credentials of the node.
func TestAnonymousCalls(t *testing.T) {
	var host string
	host = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && r.Header.Get("Authorization") != "":
			t.Errorf("credentials for an anonymous call: %q", r.Header.Get("Authorization"))
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"token":"everybody"}`)
		case strings.HasPrefix(r.URL.Path, "/v2/some/") && r.Header.Get("Authorization") == "Bearer everybody":
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, host))
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.Keychain = nodeKeychain{} })
	for repo, want := range map[string]int{"some/image": 200, "other/image": 401} {
		call := blobCall(host)
		call.Anonymous, call.Repo = true, repo
		if code, _, _, err := do(t, c, call); code != want || err != nil {
			t.Errorf("%s: status %d, %v", repo, code, err)
		}
	}
}

type nodeKeychain struct{}

func (nodeKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "node", Password: "secret"}, nil
}

// TestBoundedStreams: as many blobs as configured are read from a host at a time; short requests do not wait for them.
func TestBoundedStreams(t *testing.T) {
	var mu sync.Mutex
	var now, most int
	release, started := make(chan struct{}), make(chan struct{}, 8)
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			return
		}
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		started <- struct{}{}
		<-release
		mu.Lock()
		now--
		mu.Unlock()
	})
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.MaxStreams, cfg.StallTimeout = 2, 20*time.Second })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if code, _, _, err := do(t, c, blobCall(host)); code != 200 || err != nil {
				t.Errorf("status %d, %v", code, err)
			}
		})
	}
	<-started
	<-started
	head := blobCall(host)
	head.Method = http.MethodHead
	if code, _, _, err := do(t, c, head); code != 200 || err != nil {
		t.Errorf("short request: status %d, %v", code, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Do(ctx, blobCall(host)); !errors.Is(err, context.Canceled) {
		t.Errorf("who goes away does not wait: %v", err)
	}
	close(release)
	wg.Wait()
	if most != 2 {
		t.Errorf("%d at a time, want 2", most)
	}
}

// TestDoRefusesNonsense: what is no repository is not asked for.
func TestDoRefusesNonsense(t *testing.T) {
	c, _ := newClient(t, nil)
	for _, call := range []registry.Call{
		{Method: "GET", Host: "127.0.0.1:1/x", Repo: "a/b", Kind: "blobs", Ref: "x"},
		{Method: "GET", Host: "127.0.0.1:1", Repo: "../b", Kind: "blobs", Ref: "x"},
		{Method: "GET", Host: "127.0.0.1:1", Repo: "A/b", Kind: "blobs", Ref: "x"},
		{Method: "GET", Host: "user@127.0.0.1:1", Repo: "a/b", Kind: "blobs", Ref: "x"},
	} {
		if _, err := c.Do(t.Context(), call); !errors.Is(err, blockfmt.ErrUnsupported) {
			t.Errorf("%+v: %v", call, err)
		}
	}
}
