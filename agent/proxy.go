package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/registryproxy"
)

// ProxyConfig are the settings of the registry proxy.
type ProxyConfig struct {
	// Listen is the TCP address of the proxy, loopback only: it does not ask who calls. Default 127.0.0.1:9751; "" for none.
	Listen string `toml:"listen"`
	// DefaultUpstream is the registry of requests that name none, such as those of Docker's registry-mirrors. Default docker.io; ""
	// to refuse them.
	DefaultUpstream string `toml:"default_upstream"`
	// TagTTL is how long it is believed what a tag names, as "10s". Default 10s.
	TagTTL Duration `toml:"tag_ttl"`
	// GrantTTL is how long it is believed that a registry accepts a client's credentials for a repository. Default 5m.
	GrantTTL Duration `toml:"grant_ttl"`
	// OfflineFor is how much longer both are believed while the registry does not answer. Whom the registry has locked out meanwhile
	// goes on to read what is cached. Default 24h; "0s": what is cached is of no use without its registry.
	OfflineFor Duration `toml:"offline_for"`
	// ShareCredentials lets clients that send no credentials read with those of this node. Everybody who reaches Listen can then
	// pull what the node can. Default false.
	ShareCredentials bool `toml:"share_credentials"`
}

func defaultProxy() ProxyConfig {
	return ProxyConfig{Listen: "127.0.0.1:9751", DefaultUpstream: "docker.io", TagTTL: Duration{10 * time.Second},
		GrantTTL: Duration{5 * time.Minute}, OfflineFor: Duration{24 * time.Hour}}
}

func (c ProxyConfig) validate() error {
	if c.Listen != "" {
		host, _, err := net.SplitHostPort(c.Listen)
		addr, err2 := netip.ParseAddr(host)
		if err != nil || host != "localhost" && (err2 != nil || !addr.IsLoopback()) {
			return fmt.Errorf("configuration: proxy.listen = %q, want an address on loopback, as 127.0.0.1:9751", c.Listen)
		}
	}
	if c.DefaultUpstream != "" {
		if _, err := registryproxy.ParseHost(c.DefaultUpstream); err != nil {
			return fmt.Errorf("configuration: proxy.default_upstream: %w", err)
		}
	}
	if c.TagTTL.Duration <= 0 || c.GrantTTL.Duration <= 0 || c.OfflineFor.Duration < 0 {
		return fmt.Errorf("configuration: proxy.tag_ttl and proxy.grant_ttl must be positive, proxy.offline_for not negative")
	}
	return nil
}

// proxy is the registry proxy of a node, over its cache and its registry client.
type proxy struct {
	handler   *registryproxy.Proxy
	downloads *registryproxy.Downloads
	memory    string // file of what it knows from registries
	log       *slog.Logger
}

// newProxy returns the proxy of a node; trees is nil if the node is in no cluster. pulled is told of manifests that clients get.
func newProxy(cfg Config, c *cache.Cache, client *registry.Client, trees *cluster, pulled func(registryproxy.Pull)) (*proxy, error) {
	up := upstream{client, cfg.Proxy.ShareCredentials}
	source := registryproxy.Streamed(up)
	if trees != nil {
		source = plainTree{trees, c, up, source}
	}
	downloads := registryproxy.NewDownloads(source, plainStore{c}, cfg.Log)
	handler, err := registryproxy.New(registryproxy.Config{
		Upstream: up, Blobs: downloads, Manifests: plainStore{c}, DefaultUpstream: cfg.Proxy.DefaultUpstream,
		TagTTL: cfg.Proxy.TagTTL.Duration, GrantTTL: cfg.Proxy.GrantTTL.Duration, OfflineFor: cfg.Proxy.OfflineFor.Duration, Pulled: pulled, Log: cfg.Log,
	})
	if err != nil {
		return nil, errors.Join(err, downloads.Close())
	}
	memory := "proxy.json"
	if cfg.Proxy.ShareCredentials { // what registries said to this node is not what they say to clients
		memory = "proxy-shared.json"
	}
	p := &proxy{handler: handler, downloads: downloads, memory: filepath.Join(cfg.Root, memory), log: cfg.Log}
	p.recall()
	return p, nil
}

// rememberEvery is how often it is written down what the proxy knows from registries.
const rememberEvery = time.Minute

// recall takes up what an earlier proxy wrote down. Without that the registries are asked again.
func (p *proxy) recall() {
	text, err := os.ReadFile(p.memory)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = p.handler.Recall(text)
	}
	if err != nil {
		p.log.Warn("registries are asked again for everything", "error", err)
	}
}

func (p *proxy) remember() {
	text, err := p.handler.Remember()
	if err == nil {
		err = writeBytes(p.memory, text)
	}
	if err != nil {
		p.log.Warn("what the proxy knows from registries is not kept", "error", err)
	}
}

// run writes down what the proxy knows, until ctx ends.
func (p *proxy) run(ctx context.Context) error {
	defer p.remember()
	ticker := time.NewTicker(rememberEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.remember()
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *proxy) close() error { return errors.Join(p.handler.Close(), p.downloads.Close()) }

// serve serves clients on l until ctx ends. Clients have bounded time for their requests, and the handler bounds that for answers.
func (p *proxy) serve(ctx context.Context, l net.Listener) error {
	return serveWith(ctx, l, &http.Server{
		Handler: p.handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	})
}

// RunProxy runs the registry proxy alone until ctx ends, and returns when everything it started has stopped.
func RunProxy(ctx context.Context, cfg Config) (err error) {
	if err := cfg.validate(); err != nil {
		return err
	}
	if cfg.Proxy.Listen == "" {
		return fmt.Errorf("configuration: proxy.listen is empty")
	}
	a := &agent{cfg: cfg, metrics: newMetrics()}
	var stop closers
	defer func() { err = errors.Join(err, stop.close()) }()
	if err := a.startStore(&stop); err != nil {
		return err
	}
	if err := a.startProxy(&stop); err != nil {
		return err
	}
	return a.serveAll(ctx, a.listenPublic, a.proxy.run)
}

// upstream is the node's registry client, as the proxy wants it.
type upstream struct {
	client *registry.Client
	own    bool // credentials of this node for clients that send none
}

// Do implements registryproxy.Upstream.
func (u upstream) Do(ctx context.Context, req registryproxy.Request) (*registryproxy.Response, error) {
	call := registry.Call{Method: req.Method, Host: req.Host, Repo: req.Repo, Kind: req.Kind, Ref: req.Ref, Query: req.Query,
		Header: http.Header{}, Authorization: req.Authorization, Own: (u.own || req.Own) && !req.Anonymous, Anonymous: req.Anonymous, Avoid: req.Avoid}
	if len(req.Accept) > 0 {
		call.Header["Accept"] = req.Accept
	}
	if req.Range != "" {
		call.Header["Range"] = []string{req.Range}
	}
	resp, err := u.client.Do(ctx, call)
	if err != nil {
		return nil, err
	}
	status := resp.StatusCode
	if u.own && req.Repo == "" && status == http.StatusUnauthorized {
		status = http.StatusOK // clients need not log in
	}
	return &registryproxy.Response{Status: status, Header: resp.Header, Body: resp.Body, Length: resp.ContentLength, From: resp.From}, nil
}

// plainStore is the node's cache, as the proxy wants it.
type plainStore struct{ cache *cache.Cache }

// Open implements registryproxy.Store.
func (s plainStore) Open(d digest.Digest) (*os.File, error) { return s.cache.OpenPlain(d) }

// Create implements registryproxy.Store.
func (s plainStore) Create(d digest.Digest, size int64) (registryproxy.File, error) {
	draft, err := s.cache.CreatePlain(d, size)
	if err != nil {
		return nil, err
	}
	return draft, nil
}

// Keep implements registryproxy.Store.
func (s plainStore) Keep(f registryproxy.File) error { return f.(*cache.Draft).Keep() }

// Manifest implements registryproxy.Manifests.
func (s plainStore) Manifest(d digest.Digest) (registryproxy.Manifest, error) {
	mediaType, body, err := s.cache.Manifest(d)
	return registryproxy.Manifest{MediaType: mediaType, Body: body}, err
}

// KeepManifest implements registryproxy.Manifests.
func (s plainStore) KeepManifest(d digest.Digest, m registryproxy.Manifest) error {
	return s.cache.KeepManifest(d, m.MediaType, m.Body)
}

// clientCertificates reads what a registry is shown.
func clientCertificates(host string, r RegistryConfig) ([]tls.Certificate, error) {
	if r.ClientCert == "" && r.ClientKey == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(r.ClientCert, r.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("client certificate for registry %s: %w", host, err)
	}
	return []tls.Certificate{cert}, nil
}
