package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// gets counts the reads of a registry, by what was read.
type gets struct {
	mu sync.Mutex
	of map[string]int
}

// count has the world count from now on.
func (w *world) count() *gets {
	g := &gets{of: map[string]int{}}
	w.fail(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.of[r.URL.Path]++
		}
		return false
	})
	return g
}

func (g *gets) check(t *testing.T, want int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for path, n := range g.of {
		if n != want {
			t.Errorf("%d reads of %s, want %d", n, path, want)
		}
	}
	if want > 0 && len(g.of) == 0 {
		t.Error("nothing was read")
	}
}

// proxyConfig is a node's whose proxy reads from a registry.
func proxyConfig(t *testing.T, upstream string) Config {
	t.Helper()
	cfg := testConfig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	cfg.Proxy.Listen, cfg.Proxy.DefaultUpstream = l.Addr().String(), upstream
	must(t, l.Close()) // for the proxy to take
	return cfg
}

// pullAll reads all blobs of an image through go-containerregistry, which is crane's library.
func pullAll(t *testing.T, ref string, options ...remote.Option) (v1.Hash, error) {
	t.Helper()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	r, err := name.ParseReference(ref)
	must(t, err)
	img, err := remote.Image(r, append(options, remote.WithTransport(tr), remote.WithContext(t.Context()))...)
	if err != nil {
		return v1.Hash{}, err
	}
	if _, err := img.RawConfigFile(); err != nil {
		return v1.Hash{}, err
	}
	layers, err := img.Layers()
	must(t, err)
	for _, l := range layers {
		body, err := l.Compressed()
		if err != nil {
			return v1.Hash{}, err
		}
		_, err = io.Copy(io.Discard, body) // verified by the library
		if err = errors.Join(err, body.Close()); err != nil {
			return v1.Hash{}, err
		}
	}
	return img.Digest()
}

func skopeo(t *testing.T, ref string, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "skopeo", append([]string{"copy", "--src-tls-verify=false", "--preserve-digests"}, append(args, "docker://"+ref, "oci:"+t.TempDir()+":x")...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "XDG_RUNTIME_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// TestClientsPullThroughTheProxy has crane's library and skopeo pull at the same time, again after a restart, and after gc.
func TestClientsPullThroughTheProxy(t *testing.T) {
	w := newWorld(t, map[string][]byte{"a/small": []byte("hello\n"), "b/big": noise(1, 3<<20+123)})
	want, err := pullAll(t, w.ref)
	must(t, err)
	reads := w.count()
	cfg := proxyConfig(t, w.url)
	n := startNode(t, cfg)
	ref := cfg.Proxy.Listen + "/app:v1"
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if got, err := pullAll(t, ref); err != nil || got != want {
				t.Errorf("crane: %v, %v", got, err)
			}
		})
	}
	wg.Go(func() {
		if err := skopeo(t, ref); err != nil {
			t.Errorf("skopeo: %v", err)
		}
	})
	wg.Wait()
	reads.check(t, 1)
	must(t, n.stop())

	n = startNode(t, cfg)
	if got, err := pullAll(t, ref); err != nil || got != want {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	reads.check(t, 1)
	list, err := n.CacheList(t.Context())
	must(t, err)
	if len(list) != 3 || !list[0].Plain || !list[0].Complete { // two layers and the config
		t.Errorf("cache holds %+v", list)
	}
	if freed, err := n.CacheGC(t.Context()); err != nil || freed.FreedBytes < 3<<20 {
		t.Errorf("gc: %+v, %v", freed, err)
	}
	if got, err := pullAll(t, ref); err != nil || got != want {
		t.Errorf("after gc: %v, %v", got, err)
	}
	reads.check(t, 2)
}

// TestProxyAlone: RunProxy is the proxy without mounts, in all that clients see.
func TestProxyAlone(t *testing.T) {
	w := newWorld(t, twoLayers())
	want, err := pullAll(t, w.ref)
	must(t, err)
	cfg := proxyConfig(t, w.url)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- RunProxy(ctx, cfg) }()
	waitFor(t, "proxy", func() bool {
		c, err := net.Dial("tcp", cfg.Proxy.Listen)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if got, err := pullAll(t, cfg.Proxy.Listen+"/app:v1"); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(cfg.Root, "cache", "plain")); err != nil || len(entries) != 3 {
		t.Errorf("%d blobs are kept, %v", len(entries), err)
	}
}

// locked is a registry with logins: user alice and tokens for her, or Basic credentials.
func locked(t *testing.T, w *world, bearer bool) *httptest.Server {
	t.Helper()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		known := user == "alice" && password == "secret"
		switch {
		case r.URL.Path == "/token" && known:
			fmt.Fprint(rw, `{"token":"tok"}`)
		case r.URL.Path == "/token":
			rw.WriteHeader(http.StatusUnauthorized)
		case bearer && r.Header.Get("Authorization") == "Bearer tok", !bearer && known:
			proxyTo(t, rw, r, w.url)
		case bearer:
			rw.Header().Set("WWW-Authenticate", `Bearer realm="`+strings.Replace(server.URL, "127.0.0.1", "localhost", 1)+`/token",service="s",scope="repository:app:pull"`)
			rw.WriteHeader(http.StatusUnauthorized)
		default:
			rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			rw.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

func proxyTo(t *testing.T, rw http.ResponseWriter, r *http.Request, host string) {
	req := r.Clone(r.Context())
	req.URL.Scheme, req.URL.Host, req.Host, req.RequestURI = "http", host, host, ""
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		rw.Header()[k] = v
	}
	rw.WriteHeader(resp.StatusCode)
	io.Copy(rw, resp.Body) //nolint:errcheck // the client may be gone
}

// TestLoginsThroughTheProxy: clients log in with the registry by themselves, and only who can reads what is kept.
func TestLoginsThroughTheProxy(t *testing.T) {
	for kind, bearer := range map[string]bool{"bearer": true, "basic": false} {
		t.Run(kind, func(t *testing.T) {
			defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			w := newWorld(t, twoLayers())
			want, err := pullAll(t, w.ref)
			must(t, err)
			server := locked(t, w, bearer)
			cfg := proxyConfig(t, strings.TrimPrefix(server.URL, "http://"))
			n := startNode(t, cfg)
			ref := cfg.Proxy.Listen + "/app:v1"
			refused := func(when string) {
				t.Helper()
				var e *transport.Error
				if _, err := pullAll(t, ref); !errors.As(err, &e) || e.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s, without credentials: %v", when, err)
				}
				if err := skopeo(t, ref, "--src-creds", "bob:secret"); err == nil {
					t.Errorf("%s: bob can pull", when)
				}
			}
			refused("cold")
			if got, err := pullAll(t, ref, remote.WithAuth(&authn.Basic{Username: "alice", Password: "secret"})); err != nil || got != want {
				t.Errorf("crane: %v, %v", got, err)
			}
			if err := skopeo(t, ref, "--src-creds", "alice:secret"); err != nil {
				t.Errorf("skopeo: %v", err)
			}
			refused("warm")
			must(t, n.stop())
			for _, secret := range []string{"secret", "tok\"", "YWxpY2U6c2VjcmV0"} {
				if strings.Contains(n.log.String(), secret) {
					t.Errorf("%q is in the log: %s", secret, n.log)
				}
			}
		})
	}
}

// TestNodeCredentialsForClients: with share_credentials those of the node's docker configuration serve clients without any.
func TestNodeCredentialsForClients(t *testing.T) {
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	w := newWorld(t, twoLayers())
	want, err := pullAll(t, w.ref)
	must(t, err)
	server := locked(t, w, true)
	host := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{"`+host+`":{"username":"alice","password":"secret"}}}`), 0o600))
	t.Setenv("DOCKER_CONFIG", dir)
	for _, share := range []bool{false, true} {
		cfg := proxyConfig(t, host)
		cfg.Proxy.ShareCredentials = share
		n := startNode(t, cfg)
		got, err := pullAll(t, cfg.Proxy.Listen+"/app:v1")
		if ok := err == nil && got == want; ok != share {
			t.Errorf("share_credentials = %v: %v", share, err)
		}
		must(t, n.stop())
	}
}

// TestContainerdsResolver: containerd's own code, with a hosts.toml for all registries, resolves, logs in and fetches with ns.
func TestContainerdsResolver(t *testing.T) {
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	w := newWorld(t, twoLayers())
	server := locked(t, w, true)
	host := strings.TrimPrefix(server.URL, "http://")
	cfg := proxyConfig(t, "")
	startNode(t, cfg)
	hosts := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(hosts, "_default"), 0o700))
	must(t, os.WriteFile(filepath.Join(hosts, "_default", "hosts.toml"),
		fmt.Appendf(nil, "[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", cfg.Proxy.Listen), 0o600))
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: dockerconfig.ConfigureHosts(t.Context(), dockerconfig.HostOptions{
		HostDir:      dockerconfig.HostDirFromRoot(hosts),
		UpdateClient: func(c *http.Client) error { c.Transport = tr; return nil },
		AuthorizerOpts: []docker.AuthorizerOpt{docker.WithAuthClient(&http.Client{Transport: tr}),
			docker.WithAuthCreds(func(string) (string, string, error) { return "alice", "secret", nil })},
	})})
	_, desc, err := resolver.Resolve(t.Context(), host+"/app:v1")
	must(t, err)
	fetcher, err := resolver.Fetcher(t.Context(), host+"/app:v1")
	must(t, err)
	fetch := func(d ocispec.Descriptor) []byte {
		t.Helper()
		body, err := fetcher.Fetch(t.Context(), d)
		must(t, err)
		defer body.Close()
		text, err := io.ReadAll(body)
		must(t, err)
		if d.Digest.Algorithm().FromBytes(text) != d.Digest {
			t.Errorf("%s: other bytes", d.Digest)
		}
		return text
	}
	var m ocispec.Manifest
	must(t, json.Unmarshal(fetch(desc), &m))
	for _, d := range append(m.Layers, m.Config) {
		fetch(d)
	}
	waitFor(t, "blobs on disk, so the proxy was passed by", func() bool {
		entries, err := os.ReadDir(filepath.Join(cfg.Root, "cache", "plain"))
		return err == nil && len(entries) == len(m.Layers)+1
	})
}

// TestRegistriesWithCertificates: a CA and a client certificate are those of one registry, and a mirror has its own.
func TestRegistriesWithCertificates(t *testing.T) {
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	w := newWorld(t, twoLayers())
	want, err := pullAll(t, w.ref)
	must(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		proxyTo(t, rw, r, w.url)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	must(t, err)
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	host := strings.TrimPrefix(server.URL, "https://")
	for name, test := range map[string]struct {
		upstream   string
		registries map[string]RegistryConfig
		ok         bool
	}{
		"with both":            {host, map[string]RegistryConfig{host: {CA: cert, ClientCert: cert, ClientKey: key}}, true},
		"without the client's": {host, map[string]RegistryConfig{host: {CA: cert}}, false},
		"of another registry":  {host, map[string]RegistryConfig{"other.example": {CA: cert, ClientCert: cert, ClientKey: key}}, false},
		"as a mirror":          {"127.0.0.1:1", map[string]RegistryConfig{"127.0.0.1:1": {Mirrors: []string{host}}, host: {CA: cert, ClientCert: cert, ClientKey: key}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := proxyConfig(t, test.upstream)
			cfg.Registries = test.registries
			n := startNode(t, cfg)
			got, err := pullAll(t, cfg.Proxy.Listen+"/app:v1", remote.WithRetryPredicate(func(error) bool { return false }))
			if ok := err == nil && got == want; ok != test.ok {
				t.Errorf("%v, %v", got, err)
			}
			must(t, n.stop())
		})
	}
}

// TestProxyConfiguration: what cannot work is refused when the agent starts.
func TestProxyConfiguration(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"not on loopback":      func(c *Config) { c.Proxy.Listen = "0.0.0.0:9751" },
		"all interfaces":       func(c *Config) { c.Proxy.Listen = ":9751" },
		"no address":           func(c *Config) { c.Proxy.Listen = "9751" },
		"upstream with a path": func(c *Config) { c.Proxy.DefaultUpstream = "a/b" },
		"metadata service":     func(c *Config) { c.Proxy.DefaultUpstream = "169.254.169.254" },
		"no tag_ttl":           func(c *Config) { c.Proxy.TagTTL.Duration = 0 },
		"negative offline_for": func(c *Config) { c.Proxy.OfflineFor.Duration = -time.Second },
		"mirror with a scheme": func(c *Config) { c.Registries = map[string]RegistryConfig{"a": {Mirrors: []string{"http://b"}}} },
		"no client key":        func(c *Config) { c.Registries = map[string]RegistryConfig{"a": {ClientCert: "/nonexistent"}} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := proxyConfig(t, "docker.io")
			change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := RunProxy(ctx, cfg); err == nil || ctx.Err() != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestProxyMetrics: what the proxy gave is counted, once each.
func TestProxyMetrics(t *testing.T) {
	w := newWorld(t, twoLayers())
	cfg := proxyConfig(t, w.url)
	n := startNode(t, cfg)
	_, err := pullAll(t, cfg.Proxy.Listen+"/app:v1")
	must(t, err)
	resp, err := n.http.Get("http://agent/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	lines := strings.Split(string(text), "\n")
	for _, want := range []string{`xylem_proxy_manifests_total{from="registry"} 1`, "xylem_proxy_refused_total 0", "xylem_proxy_aborted_total 0", "xylem_proxy_direct_bytes_total 0"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %q in %s", want, bytes.Join([][]byte{[]byte("metrics:"), text}, []byte("\n")))
		}
	}
}

// TestProxyRemembersOverRestarts: a machine that starts while the registry is down uses what it has, for those who could read it.
func TestProxyRemembersOverRestarts(t *testing.T) {
	w := newWorld(t, twoLayers())
	want, err := pullAll(t, w.ref)
	must(t, err)
	cfg := proxyConfig(t, w.url)
	cfg.Proxy.TagTTL, cfg.Proxy.GrantTTL, cfg.ReadTimeout = Duration{time.Nanosecond}, Duration{time.Nanosecond}, Duration{time.Second}
	ref := cfg.Proxy.Listen + "/app:v1"
	n := startNode(t, cfg)
	if got, err := pullAll(t, ref); err != nil || got != want {
		t.Fatalf("%v, %v", got, err)
	}
	must(t, n.stop())
	w.fail(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	for _, damaged := range []bool{false, true} {
		if damaged {
			must(t, os.WriteFile(filepath.Join(cfg.Root, "proxy.json"), []byte("{"), 0o600))
		}
		n = startNode(t, cfg)
		got, err := pullAll(t, ref, remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes())
		if ok := err == nil && got == want; ok == damaged {
			t.Errorf("damaged %v: %v, %v", damaged, got, err)
		}
		must(t, n.stop())
	}
	if info, err := os.Stat(filepath.Join(cfg.Root, "proxy.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestRegistryLimit: clients of the proxy together get what is not here yet no faster than the node's limit, and what is here at once.
func TestRegistryLimit(t *testing.T) {
	w := newWorld(t, map[string][]byte{"a": noise(1, 2<<20), "b": noise(2, 2<<20)})
	cfg := proxyConfig(t, w.url)
	cfg.RegistryLimit = 2 << 20
	startNode(t, cfg)
	pull := func() time.Duration {
		start := time.Now()
		_, err := pullAll(t, cfg.Proxy.Listen+"/app:v1")
		must(t, err)
		return time.Since(start)
	}
	if took := pull(); took < 1800*time.Millisecond || took > 10*time.Second { // a tenth of a second comes at once
		t.Errorf("4 MiB took %v at 2 MiB/s", took)
	}
	if took := pull(); took > 1500*time.Millisecond {
		t.Errorf("what is here took %v", took)
	}
}
