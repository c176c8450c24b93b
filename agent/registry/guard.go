package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// HostConfig are the settings of one host.
type HostConfig struct {
	// RootCAs are trusted for this host instead of Config.RootCAs. Default nil: those.
	RootCAs *x509.CertPool
	// Certificates are shown to the host when it asks. Default: none.
	Certificates []tls.Certificate
	// Mirrors (host or host:port) are asked first by Do, in their order.
	Mirrors []string
	// Limit bounds the bytes per second of this host, beside Config.Limit. What its storage sends counts, what a mirror sends does not.
	// Default 0: none.
	Limit int64
}

// routes decides how, and whether, a host is connected to. A registry can send its clients anywhere, by redirects and by naming
// a token server: to the cloud's metadata service, or to what listens on loopback. So there are three kinds of ways, with
// connections of their own: hosts in Config.Hosts, which an operator has named, may have any address; other registries any that
// Config.MayDial allows; and where registries send to must be a public address, unless the registry itself has none.
type routes struct {
	cfg          Config
	direct, sent *http.Transport
	public       func(netip.Addr) bool // whether a registry there may send to public addresses only
	hosts        map[string]*http.Transport

	mu      sync.Mutex
	private map[string]bool // registries that were reached at an address that is not public
}

func newRoutes(cfg Config) *routes {
	g := &routes{cfg: cfg, public: isPublic, hosts: map[string]*http.Transport{}, private: map[string]bool{}}
	g.direct = newTransport(cfg, HostConfig{}, cfg.MayDial)
	g.sent = newTransport(cfg, HostConfig{}, func(a netip.Addr) bool { return cfg.MayDial(a) && isPublic(a) })
	for host, h := range cfg.Hosts {
		g.hosts[canonicalHost(host)] = newTransport(cfg, h, func(netip.Addr) bool { return true })
	}
	return g
}

func newTransport(cfg Config, host HostConfig, may func(netip.Addr) bool) *http.Transport {
	roots := cfg.RootCAs
	if host.RootCAs != nil {
		roots = host.RootCAs
	}
	dialer := &net.Dialer{Timeout: cfg.StallTimeout, KeepAlive: 30 * time.Second, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil || !may(addr.Addr().Unmap().WithZone("")) {
			return fmt.Errorf("address %s is not one that may be connected to: %w", address, blockfmt.ErrDenied)
		}
		return nil
	}}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: roots, Certificates: host.Certificates, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   cfg.StallTimeout,
		ResponseHeaderTimeout: cfg.StallTimeout,
		MaxIdleConns:          4 * cfg.MaxConns,
		MaxIdleConnsPerHost:   cfg.MaxConns,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true, // blobs are what they are; ranges of a compressed body would be others
		ReadBufferSize:        64 << 10,
	}
}

// sharedAddresses are those of carriers' NAT, RFC 6598.
var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !a.IsLoopback() && !sharedAddresses.Contains(a)
}

type registryKey struct{}

// sentBy returns a context of requests on behalf of a registry.
func sentBy(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, registryKey{}, host)
}

// RoundTrip implements http.RoundTripper.
func (g *routes) RoundTrip(req *http.Request) (*http.Response, error) {
	registry, _ := req.Context().Value(registryKey{}).(string)
	listed := g.hosts[canonicalHost(req.URL.Host)]
	switch {
	case req.URL.Host == registry && listed == nil:
		return g.direct.RoundTrip(req.WithContext(g.watch(req.Context(), registry)))
	case req.URL.Host == registry:
		return listed.RoundTrip(req.WithContext(g.watch(req.Context(), registry)))
	case listed != nil:
		return listed.RoundTrip(req)
	}
	if proxy, err := g.sent.Proxy(req); err == nil && proxy != nil { // it decides
		return g.direct.RoundTrip(req)
	}
	g.mu.Lock()
	private := g.private[registry]
	g.mu.Unlock()
	if private {
		return g.direct.RoundTrip(req)
	}
	return g.sent.RoundTrip(req)
}

// watch notes whether a registry is reached at a public address.
func (g *routes) watch(ctx context.Context, registry string) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		addr, err := netip.ParseAddrPort(info.Conn.RemoteAddr().String())
		g.mu.Lock()
		defer g.mu.Unlock()
		if err == nil && !g.public(addr.Addr().Unmap()) {
			g.private[registry] = true
		} else {
			delete(g.private, registry)
		}
	}})
}

func (g *routes) close() {
	g.direct.CloseIdleConnections()
	g.sent.CloseIdleConnections()
	for _, t := range g.hosts {
		t.CloseIdleConnections()
	}
}
