package registryproxy

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// Upstream speaks to registries.
//
// Do returns every answer that says something about the thing that was asked for: 2xx, and 4xx but for 429. It returns an
// error of one of blockfmt's kinds where there is no such answer: ErrTransient for a registry that does not answer or asks for
// rest (which may be a RetryLater), ErrDenied for an address that must not be spoken to, ErrUnsupported for answers that are
// no registry's. The time until the answer is bounded, and so is the time between the bytes of its body. Safe for concurrent use.
type Upstream interface {
	Do(ctx context.Context, req Request) (*Response, error)
}

// Request is what is asked of a registry. All parts are well-formed.
type Request struct {
	Method string
	Host   string // the registry as clients name it: "docker.io", "registry.example:5000"
	Repo   string // "" asks for the API's base, /v2/
	Kind   string // "manifests", "blobs", "referrers" or "tags"
	Ref    string // tag or digest; "list" for tags
	Query  url.Values
	Accept []string
	Range  string // of Range's header, "" for all
	// Authorization is the client's, for Host alone; "" if it sent none.
	Authorization string
	// Own asks with this node's credentials.
	Own bool
	// Anonymous asks as somebody would who has no credentials, but gets himself the token that everybody gets.
	Anonymous bool
	// Avoid lists who gave wrong bytes, as Response.From.
	Avoid []string
}

// Response is a registry's answer. The caller closes Body.
type Response struct {
	Status int
	Header http.Header
	Body   io.ReadCloser
	Length int64  // of the body as announced, -1 if it is not
	From   string // who answered: the registry, or one of its mirrors
}

// RetryLater is what an error of Upstream may be as well: the registry says when to come back.
type RetryLater interface {
	error
	RetryAfter() (seconds int)
}
