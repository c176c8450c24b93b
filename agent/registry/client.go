// Package registry reads from OCI registries: manifests, referrers, blobs and ranges of blobs, each bounded, with one
// backoff per registry and credentials that are renewed when they expire.
//
// It is the last Source on the way of the data: Repository.Range feeds fetch.Ranged. Manifests and whole blobs are
// verified here, ranges are not: their blocks are verified above.
package registry

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Config of a Client. The zero value is ready for public registries and for plain HTTP on loopback.
type Config struct {
	// Timeout bounds one call of Resolve, Manifest or Referrers with all its retries, and the time until Blob or Range
	// have an answer. Default 30 s.
	Timeout time.Duration
	// StallTimeout bounds the time without progress: until a registry answers a request, and between the bytes of a body.
	// The request then fails with ErrTransient. Default 10 s.
	StallTimeout time.Duration
	// Attempts bounds how often a request is sent that fails with ErrTransient. Default 4.
	Attempts int
	// MaxRetryAfter bounds the Retry-After of a registry that is obeyed. Default 60 s.
	MaxRetryAfter time.Duration
	// MaxConns bounds the connections kept open per host while idle. Default 32.
	MaxConns int
	// PlainHTTP lists hosts (host or host:port) that are spoken to without TLS. Loopback addresses always are, unless
	// they are listed in TLS.
	PlainHTTP []string
	// TLS lists loopback hosts (host or host:port) that are spoken to with TLS.
	TLS []string
	// RootCAs are trusted for TLS instead of the system's. Default nil: the system's.
	RootCAs *x509.CertPool
	// Hosts are the settings of single hosts (host or host:port). What is listed here may have any address.
	Hosts map[string]HostConfig
	// MaxStreams bounds the blobs that Do reads from one host at a time. Of its other requests there may be four times as many. Default 8.
	MaxStreams int
	// Limit bounds the bytes of bodies per second that are read of all registries together, as they come in: those that are read at a time take
	// turns. Default 0: none.
	Limit int64
	// MayDial says whether a registry that is not in Hosts may have an address. Default: any but unspecified, multicast and
	// link-local ones. Where a registry redirects to, or has tokens made, must be a public address unless the registry's is not.
	MayDial func(netip.Addr) bool
	// Keychain gives credentials where none were set by SetCredentials. Default: docker's config and credential helpers.
	Keychain authn.Keychain
	// Plugins give credentials where the Keychain has none. They are closed with the Client. Default: none.
	Plugins *Plugins
	// UserAgent is sent with each request. Default "xylem".
	UserAgent string
	// Logger gets one line when a registry becomes unavailable. Default: discard.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	setDefault(&c.Timeout, 30*time.Second)
	setDefault(&c.StallTimeout, 10*time.Second)
	setDefault(&c.Attempts, 4)
	setDefault(&c.MaxRetryAfter, time.Minute)
	setDefault(&c.MaxConns, 32)
	setDefault(&c.UserAgent, "xylem")
	setDefault(&c.MaxStreams, 8)
	if c.MayDial == nil {
		c.MayDial = func(a netip.Addr) bool { return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() }
	}
	if c.Keychain == nil {
		c.Keychain = authn.DefaultKeychain
	}
	if c.Plugins == nil {
		c.Plugins = &Plugins{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Client reads from any number of registries. Safe for concurrent use. Close it when done.
type Client struct {
	cfg       Config
	routes    *routes
	http      *http.Client
	auth      *authorizer
	nobody    *authorizer // for calls without credentials
	limits    limits
	redirects memory // of blobs to storage, by repository and digest
	noAPI     memory // hosts without the referrers API

	mu       sync.Mutex
	backoffs map[string]*backoff // by host
	slots    map[string]slots    // by host
}

// New returns a Client. It does no I/O.
func New(cfg Config) *Client {
	cfg = cfg.withDefaults()
	c := &Client{cfg: cfg, routes: newRoutes(cfg), limits: newLimits(cfg), backoffs: map[string]*backoff{}, slots: map[string]slots{}}
	c.http = &http.Client{Transport: c.routes, CheckRedirect: dropCredentials}
	c.auth = newAuthorizer(cfg, c.http)
	anonymous := cfg
	anonymous.Keychain, anonymous.Plugins = authn.NewMultiKeychain(), &Plugins{}
	c.nobody = newAuthorizer(anonymous, c.http)
	return c
}

// Close closes idle connections and ends plugins. Bodies that Range returned stay readable.
func (c *Client) Close() error {
	c.cfg.Plugins.Close()
	c.routes.close()
	return nil
}

// dropCredentials keeps the Authorization of a registry from the storage host it redirects to. net/http keeps it for
// other ports and for subdomains of the same host; a registry's storage often is one of those and does not need it.
func dropCredentials(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return fmt.Errorf("more than %d redirects: %w", len(via), blockfmt.ErrUnsupported)
	}
	first := via[0].URL
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s: %w", req.URL.Scheme, blockfmt.ErrDenied)
	}
	if req.URL.Host != first.Host {
		req.Header.Del("Authorization")
	}
	return nil
}

// scheme returns how to speak to a host.
func (c *Client) scheme(host string) string {
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	listed := func(hosts []string) bool { return slices.Contains(hosts, host) || slices.Contains(hosts, bare) }
	addr, err := netip.ParseAddr(strings.Trim(bare, "[]"))
	loopback := bare == "localhost" || (err == nil && addr.IsLoopback())
	if listed(c.cfg.PlainHTTP) || (loopback && !listed(c.cfg.TLS)) {
		return "http"
	}
	return "https"
}

func (c *Client) backoff(host string) *backoff {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.backoffs[host]
	if b == nil {
		b = &backoff{max: c.cfg.MaxRetryAfter}
		c.backoffs[host] = b
	}
	return b
}

// Repository returns the repository of a reference such as "registry.example/some/name", with or without a tag or
// digest, which are ignored. It returns ErrUnsupported for something that is no reference. No I/O.
func (c *Client) Repository(ref string) (*Repository, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrUnsupported)
	}
	repo := r.Context()
	return &Repository{client: c, host: repo.RegistryStr(), path: repo.RepositoryStr(), resource: repo}, nil
}

// A Repository is where manifests and blobs are read. Safe for concurrent use.
type Repository struct {
	client   *Client
	host     string
	path     string
	resource authn.Resource // for the Keychain
}

// String returns host and path.
func (r *Repository) String() string { return r.host + "/" + r.path }

func (r *Repository) url(kind, name string) string {
	return r.client.scheme(r.host) + "://" + r.host + "/v2/" + r.path + "/" + kind + "/" + name
}

// withTimeout bounds a whole call; the cause makes the error say so.
func (r *Repository) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, r.client.cfg.Timeout,
		fmt.Errorf("no answer from %s within %v: %w", r.host, r.client.cfg.Timeout, blockfmt.ErrTransient))
}

func validate(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.80q: %w: %w", d, err, blockfmt.ErrUnsupported)
	}
	return nil
}
