package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/agent/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// anonymous is a Keychain without credentials, so that the tests do not read those of whoever runs them.
type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// newClient returns a client with bounds fit for tests, and its log.
func newClient(t *testing.T, change func(*registry.Config)) (*registry.Client, *logBook) {
	t.Helper()
	logs := &logBook{}
	cfg := registry.Config{
		Timeout: 10 * time.Second, StallTimeout: time.Second, Keychain: anonymous{}, Logger: slog.New(slog.NewTextHandler(logs, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	c := registry.New(cfg)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, logs
}

type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// serve starts a server on loopback and returns its host:port.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func repository(t *testing.T, c *registry.Client, host string) *registry.Repository {
	t.Helper()
	r, err := c.Repository(host + "/some/image")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func describe(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// push puts a blob or, with a type, a manifest into a registry.
func push(t *testing.T, host, kind, name, mediaType string, body []byte) {
	t.Helper()
	target := fmt.Sprintf("http://%s/v2/some/image/%s/%s", host, kind, name)
	if kind == "blobs" {
		resp, err := http.Post(fmt.Sprintf("http://%s/v2/some/image/blobs/uploads/", host), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		target = resp.Header.Get("Location") + "&digest=" + digest.FromBytes(body).String()
		mediaType = "application/octet-stream"
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("push %s %s: status %d", kind, name, resp.StatusCode)
	}
}
