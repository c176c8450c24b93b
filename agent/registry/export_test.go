package registry

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
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

// ImageMatches says whether a pattern of matchImages matches an image.
func ImageMatches(pattern, image string) (bool, error) {
	p, err := parseImagePattern(pattern)
	return err == nil && p.matches(image), err
}

// RunPlugin runs testdata/plugin and returns its error.
func RunPlugin(ctx context.Context, dir, what string, timeout time.Duration) error {
	c := &pluginCommand{name: "plugin", path: "testdata/plugin", args: []string{what}, env: append(os.Environ(), "PLUGIN_DIR="+dir),
		apiVersion: protocolGroup + "/v1", timeout: timeout}
	if _, err := c.run(ctx, "registry.example/some/image"); err != nil {
		return newPluginError(c.name, err)
	}
	return nil
}

// FakePlugins makes plugins that match everything of functions that give an answer's text.
func FakePlugins(t time.Duration, log *slog.Logger, run ...func(ctx context.Context, image string) (string, error)) *Plugins {
	p := &Plugins{}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, f := range run {
		fake := newPlugin(p, provider{Name: "fake", defaultLife: t}, log)
		fake.images = []imagePattern{splitImage("*.*"), splitImage("*.*.*")}
		fake.run = func(ctx context.Context, image string) (*pluginResponse, error) {
			text, err := f(ctx, image)
			if err != nil {
				return nil, err
			}
			return parsePluginResponse([]byte(text), protocolGroup+"/v1")
		}
		p.plugins = append(p.plugins, fake)
	}
	return p
}

// Credentials asks for those of a repository.
func (p *Plugins) Credentials(ctx context.Context, host, path string) (Credentials, error) {
	cred, _, err := p.credentials(ctx, host, path)
	return cred, err
}

// Refuse says that a registry refuses what Credentials returned, and returns whether the plugin will be asked again.
func (p *Plugins) Refuse(ctx context.Context, host, path string) bool {
	_, from, _ := p.credentials(ctx, host, path)
	return from.forget()
}

// Through makes the client send its requests through rt, in place of connections.
func (c *Client) Through(rt http.RoundTripper) { c.http.Transport = rt }

// AnswerWith makes the client answer its requests itself, with a status and the body "ok", in place of registries.
func (c *Client) AnswerWith(status func(*http.Request) int) { c.http.Transport = answerer(status) }

type answerer func(*http.Request) int

func (f answerer) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: f(r), Header: http.Header{"Www-Authenticate": {`Basic realm="here"`}, "Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader("ok")), ContentLength: 2, Request: r}, nil
}
