package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/xylem-project/xylem/blockfmt"
)

// Call is a request that somebody else sends through this node.
type Call struct {
	Method string
	Host   string // registry, as clients name it
	Repo   string // "" for the API's base, /v2/
	Kind   string // "manifests", "blobs", "referrers" or "tags"
	Ref    string
	Query  url.Values
	Header http.Header // what to send on: Accept, Range
	// Authorization is the caller's. It goes to Host alone, not to mirrors.
	Authorization string
	// Own uses this node's credentials where the caller sends none.
	Own bool
	// Anonymous gets a token that needs no credentials, where the registry wants one.
	Anonymous bool
	// Avoid lists who is not to be asked, as Answer.From.
	Avoid []string
}

// Answer is a registry's answer of status 2xx, or 4xx if it is a refusal that another try would not change. Close the body.
type Answer struct {
	*http.Response
	From string // the registry, or the mirror in its place
}

// Do sends a call to the mirrors of its registry, in their order, and to the registry itself, until one has what is asked for. The
// registry's refusal is an answer; a mirror's means that the next one is asked. Errors are those of Repository's methods.
func (c *Client) Do(ctx context.Context, call Call) (*Answer, error) {
	for _, mirror := range c.mirrors(call.Host) {
		if slices.Contains(call.Avoid, mirror) {
			continue
		}
		there := call
		there.Authorization = ""
		resp, err := c.doAt(ctx, mirror, there)
		if err == nil && resp.StatusCode/100 == 2 {
			return &Answer{resp, mirror}, nil
		}
		if ctx.Err() != nil {
			return nil, transportError(ctx, mirror, ctx.Err())
		}
		if err == nil {
			_ = resp.Body.Close() // the next one is asked
			continue
		}
		c.cfg.Logger.Debug("mirror does not have it", "mirror", mirror, "registry", call.Host, "error", err)
	}
	if slices.Contains(call.Avoid, call.Host) {
		return nil, fmt.Errorf("%s %s of %s/%s: all who have it gave wrong bytes: %w", call.Kind, call.Ref, call.Host, call.Repo, blockfmt.ErrCorrupt)
	}
	resp, err := c.doAt(ctx, call.Host, call)
	if err != nil {
		return nil, err
	}
	return &Answer{resp, call.Host}, nil
}

// mirrors returns those configured for a host.
func (c *Client) mirrors(host string) []string {
	if h, ok := c.cfg.Hosts[host]; ok {
		return h.Mirrors
	}
	for key, h := range c.cfg.Hosts {
		if canonicalHost(key) == canonicalHost(host) {
			return h.Mirrors
		}
	}
	return nil
}

// doAt sends a call to one host.
func (c *Client) doAt(ctx context.Context, host string, call Call) (resp *http.Response, err error) {
	r, err := c.at(host, call.Repo)
	if err != nil {
		return nil, err
	}
	release, err := c.slot(r.host).acquire(ctx, r.host, call.Kind == "blobs" && call.Method == http.MethodGet)
	if err != nil {
		return nil, err
	}
	req := request{method: call.Method, url: c.callURL(r, call), header: http.Header{"Accept-Encoding": {"identity"}}, anyStatus: true}
	for k, v := range call.Header {
		req.header[k] = v
	}
	req.authorize = call.authorize(r)
	err = r.stream(ctx, req, func(answer *http.Response) error {
		if e := answer.Header.Get("Content-Encoding"); e != "" && e != "identity" && answer.StatusCode/100 == 2 {
			return fmt.Errorf("%s %s: answer is encoded as %.40q: %w", req.method, req.place(), e, blockfmt.ErrUnsupported)
		}
		resp = answer
		return errKeep
	})
	if err != nil {
		release()
		return nil, err
	}
	resp.Body = &slotBody{resp.Body, sync.OnceFunc(release)}
	return resp, nil
}

// at returns a repository by its parts, "" for none.
func (c *Client) at(host, repo string) (*Repository, error) {
	host = canonicalHost(host)
	if repo == "" {
		return &Repository{client: c, host: host}, nil
	}
	resource, err := name.NewRepository(host + "/" + repo)
	if err != nil || strings.Contains(repo, "..") || resource.RegistryStr() != host || resource.RepositoryStr() != repo {
		return nil, fmt.Errorf("repository %.80q of %.80q: %w", repo, host, blockfmt.ErrUnsupported)
	}
	return &Repository{client: c, host: host, path: repo, resource: resource}, nil
}

func (c *Client) callURL(r *Repository, call Call) string {
	u := c.scheme(r.host) + "://" + r.host + "/v2/"
	if call.Repo != "" {
		u = r.url(call.Kind, call.Ref)
	}
	if len(call.Query) > 0 {
		u += "?" + call.Query.Encode()
	}
	return u
}

// authorize returns how a call is sent: with its own Authorization, bare, or with this node's credentials.
func (call Call) authorize(r *Repository) func(context.Context, request) (*http.Response, error) {
	if call.Authorization != "" || !call.Own && !call.Anonymous || call.Repo == "" {
		return func(ctx context.Context, req request) (*http.Response, error) {
			return r.sendOnce(ctx, req, call.Authorization)
		}
	}
	auth := r.client.auth
	if call.Anonymous {
		auth = r.client.nobody
	}
	return func(ctx context.Context, req request) (*http.Response, error) {
		own := req
		own.anyStatus = false
		resp, err := r.sendAuthorized(ctx, own, auth)
		if err == nil || errors.Is(err, blockfmt.ErrTransient) || ctx.Err() != nil {
			return resp, err
		}
		return r.sendOnce(ctx, req, "") // for the registry's own words
	}
}

// slots bound the calls to one host: bodies that last, and requests that are answered at once.
type slots struct{ streams, short chan struct{} }

func (c *Client) slot(host string) slots {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.slots[host]
	if !ok {
		s = slots{make(chan struct{}, c.cfg.MaxStreams), make(chan struct{}, 4*c.cfg.MaxStreams)}
		c.slots[host] = s
	}
	return s
}

func (s slots) acquire(ctx context.Context, host string, stream bool) (release func(), err error) {
	slot := s.short
	if stream {
		slot = s.streams
	}
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, transportError(ctx, host, ctx.Err())
	}
}

// slotBody gives the slot back when it is closed.
type slotBody struct {
	io.ReadCloser
	release func()
}

func (b *slotBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
