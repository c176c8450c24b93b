package registry

import (
	"net/http"
	"net/netip"
	"time"
)

// Backoff, and the parsers, for the tests of another package.
type Backoff struct{ b backoff }

func NewBackoff(maxRetryAfter time.Duration) *Backoff { return &Backoff{backoff{max: maxRetryAfter}} }

func (b *Backoff) Wait(now time.Time) time.Duration { return b.b.wait(now) }
func (b *Backoff) Succeeded()                       { b.b.succeeded() }
func (b *Backoff) Failed(now time.Time, retryAfter time.Duration) bool {
	return b.b.failed(now, retryAfter)
}

func RetryAfter(h http.Header, now time.Time) time.Duration { return retryAfter(h, now) }

func PickChallenge(headers []string) (scheme string, params map[string]string, ok bool) {
	c, ok := pickChallenge(headers)
	return c.scheme, c.params, ok
}

func ParseContentRange(s string) (first, last, total int64, err error) { return parseContentRange(s) }

func CanonicalHost(host string) string { return canonicalHost(host) }

var IsPublic = isPublic

// BelievePublic makes the client take the addresses of all registries for public ones.
func (c *Client) BelievePublic() { c.routes.public = func(netip.Addr) bool { return true } }
