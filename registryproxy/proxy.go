package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// Config of a Proxy. Upstream, Blobs and Manifests are needed, the rest has defaults.
type Config struct {
	Upstream  Upstream
	Blobs     Blobs
	Manifests Manifests
	// DefaultUpstream is the registry of requests that name none with ns. Default "": they are refused.
	DefaultUpstream string
	// TagTTL is how long it is believed what a tag names. Default 10 s.
	TagTTL time.Duration
	// GrantTTL is how long it is believed that a registry accepts some credentials for a repository. Default 5 min.
	GrantTTL time.Duration
	// OfflineFor is how much longer both are believed while the registry does not answer. Default 0: not at all.
	OfflineFor time.Duration
	// WriteTimeout bounds the time in which a client must take a part of an answer, 64 KiB to 8 MiB. Default 60 s.
	WriteTimeout time.Duration
	// Pulled is told of each manifest that a client got, by GET. It must not block. Default: nobody is told.
	Pulled func(Pull)
	// Log gets a line for what an operator should know. Credentials are never logged. Default: discarded.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	setDefault(&c.TagTTL, 10*time.Second)
	setDefault(&c.GrantTTL, 5*time.Minute)
	setDefault(&c.WriteTimeout, time.Minute)
	if c.Pulled == nil {
		c.Pulled = func(Pull) {}
	}
	setDefault(&c.Log, slog.New(slog.DiscardHandler))
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Pull is a manifest that a client got.
type Pull struct {
	Host, Repo string
	Ref        string // the tag or digest that it asked for
	Digest     digest.Digest
	Manifest   Manifest
}

// Counters tell what the proxy does. Read them at any time.
type Counters struct {
	Requests       atomic.Int64 // all
	Refused        atomic.Int64 // of them, answered with an error
	Aborted        atomic.Int64 // of them, given up in the middle of the body
	BlobBytes      atomic.Int64 // of blobs, given to clients
	DirectBytes    atomic.Int64 // of them, past the disk because it had no room
	ManifestHits   atomic.Int64 // manifests from disk
	ManifestMisses atomic.Int64 // manifests read from registries
}

// Proxy is the http.Handler. Safe for concurrent use.
type Proxy struct {
	cfg       Config
	access    *access
	tags      facts[tagKey, digest.Digest]
	resolving flights[digest.Digest]
	reading   flights[Manifest]
	counters  Counters
}

// New returns a Proxy. It does no I/O.
func New(cfg Config) (*Proxy, error) {
	cfg = cfg.withDefaults()
	if cfg.DefaultUpstream != "" {
		host, err := ParseHost(cfg.DefaultUpstream)
		if err != nil {
			return nil, fmt.Errorf("default upstream: %w", err)
		}
		cfg.DefaultUpstream = host
	}
	return &Proxy{cfg: cfg, access: newAccess(cfg)}, nil
}

// Close ends what goes on in the background. Requests should have ended before.
func (p *Proxy) Close() error {
	p.access.background.close()
	return nil
}

// Counters returns the proxy's counters.
func (p *Proxy) Counters() *Counters { return &p.counters }

// target is what a client asks for.
type target struct {
	host, repo, kind, ref string
	accept                []string
	authorization         string
	ns                    bool // the client named the host
}

// request returns what to ask the registry.
func (t target) request(method, ref string) Request {
	return Request{Method: method, Host: t.host, Repo: t.repo, Kind: t.kind, Ref: ref, Accept: t.accept, Authorization: t.authorization}
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.counters.Requests.Add(1)
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(p.cfg.WriteTimeout)) // the last one was for the last answer
	err := p.serve(w, r)
	if err == nil {
		return
	}
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody is there; to return would be to answer 200
	}
	p.counters.Refused.Add(1)
	a := answerFor(err)
	if a.status >= 500 {
		p.cfg.Log.Warn("request cannot be answered", "method", r.Method, "path", r.URL.Path, "ns", r.URL.Query().Get("ns"), "error", err)
	}
	a.write(w, r.Method)
}

// serve answers a request, or returns an error while nothing is written.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		a := refuse(http.StatusMethodNotAllowed, codeUnsupported, "this is a mirror for pulling: push to the registry itself")
		a.header = http.Header{"Allow": {"GET, HEAD"}}
		return a
	}
	t, query, err := p.parse(r)
	if err != nil {
		return err
	}
	switch t.kind {
	case "":
		return p.base(w, r, t)
	case "manifests":
		return p.access.orLogin(t, p.manifest(w, r, t))
	case "blobs":
		return p.access.orLogin(t, p.blob(w, r, t))
	case "tags":
		return p.tagList(w, r, t, query)
	default:
		return p.referrers(w, r, t, query)
	}
}

// parse reads the request's parts and refuses what is not well-formed.
func (p *Proxy) parse(r *http.Request) (t target, query url.Values, err error) {
	query, err = url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return t, nil, refuse(http.StatusBadRequest, codeNameInvalid, "query: %v", err)
	}
	if t.host, err = namespace(query, p.cfg.DefaultUpstream); err != nil {
		return t, nil, refuse(http.StatusBadRequest, codeNameInvalid, "%v", err)
	}
	t.ns = query.Has("ns")
	query.Del("ns")
	t.accept, t.authorization = r.Header.Values("Accept"), r.Header.Get("Authorization")
	path, ok := strings.CutPrefix(r.URL.Path, "/v2")
	switch {
	case !ok || path != "" && path[0] != '/':
		return t, nil, refuse(http.StatusNotFound, codeUnsupported, "a registry's API begins with /v2/")
	case path == "" || path == "/":
		return t, query, nil
	}
	if err := t.parsePath(path[1:]); err != nil {
		return t, nil, err
	}
	if t.host == "" {
		return t, nil, refuse(http.StatusNotFound, codeNameUnknown, "the request names no registry (?ns=), and the proxy has no default one")
	}
	return t, query, nil
}

// parsePath reads what follows /v2/.
func (t *target) parsePath(path string) error {
	parts := strings.Split(path, "/")
	n := len(parts)
	if n < 3 {
		return refuse(http.StatusNotFound, codeUnsupported, "no such endpoint")
	}
	t.repo, t.kind, t.ref = strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
	if len(t.repo) > maxRepo || !repoPattern.MatchString(t.repo) {
		return refuse(http.StatusBadRequest, codeNameInvalid, "no repository name: %.300q", t.repo)
	}
	if isHub(t.host) && !strings.Contains(t.repo, "/") {
		t.repo = "library/" + t.repo
	}
	var err error
	switch t.kind {
	case "manifests":
		if strings.Contains(t.ref, ":") {
			_, err = parseDigest(t.ref)
		} else if !tagPattern.MatchString(t.ref) {
			return refuse(http.StatusNotFound, codeManifestUnknown, "there can be no tag %.200q", t.ref) // as the specification's tests want it
		}
	case "blobs", "referrers":
		_, err = parseDigest(t.ref)
	case "tags":
		if t.ref != "list" {
			err = errors.New("no such endpoint")
		}
	default:
		return refuse(http.StatusNotFound, codeUnsupported, "no such endpoint")
	}
	if err != nil {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "%.200q: %v", t.ref, err)
	}
	return nil
}

// base answers /v2/ (end-1): as the registry does, because clients learn there how to log in. If it does not answer,
// what is kept may still be read.
func (p *Proxy) base(w http.ResponseWriter, r *http.Request, t target) error {
	if t.host != "" {
		if err := p.askBase(r.Context(), t); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "2")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte("{}")) // the client may be gone
	}
	return nil
}

// askBase returns the registry's refusal, if it refuses t at its base.
func (p *Proxy) askBase(ctx context.Context, t target) error {
	req := Request{Method: http.MethodGet, Host: t.host, Authorization: t.authorization}
	var refusal error
	var within time.Duration
	if p.access.asks(t.host) != "" {
		within = loginPatience
	}
	err := p.access.unlessDown(ctx, t.host, within, func(ctx context.Context) error {
		resp, err := p.cfg.Upstream.Do(ctx, req)
		if err != nil {
			return err
		}
		p.access.heard(t, resp)
		if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
			refusal = passOn(resp, req)
			return nil
		}
		_ = resp.Body.Close() // not read
		return nil
	})
	if err == nil {
		return refusal
	}
	var login *answer
	if err = p.access.orLogin(t, err); errors.As(err, &login) {
		return login
	}
	p.cfg.Log.Info("registry does not answer, logins are not checked", "registry", t.host, "error", err)
	return nil
}
