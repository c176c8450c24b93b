package access_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/access"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server behind a Guard, which says whom it served.
type world struct {
	t    *testing.T
	keys *access.Keys
	log  *strings.Builder
	*httptest.Server
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, log: new(strings.Builder)}
	w.keys = access.New(store.NewMemory(), slog.New(slog.NewTextHandler(w.log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.keys.Run(ctx); close(done) }()
	w.Server = httptest.NewServer(w.keys.Guard(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Namespace", r.Header.Get(api.HeaderNamespace))
		io.Copy(rw, r.Body) //nolint:errcheck // the client sees it
	}), func(rw http.ResponseWriter, err error) {
		status := http.StatusForbidden
		if errors.Is(err, access.ErrUnknown) {
			status = http.StatusUnauthorized
		}
		http.Error(rw, err.Error(), status)
	}))
	t.Cleanup(func() { w.Close(); cancel(); <-done })
	return w
}

// key makes a key, and waits until it is known.
func (w *world) key(request api.KeyRequest) api.KeyResponse {
	w.t.Helper()
	k, err := w.keys.Create(w.t.Context(), request)
	if err != nil {
		w.t.Fatal(err)
	}
	w.until(k, http.StatusOK)
	return k
}

// until waits until a key is answered like that.
func (w *world) until(k api.KeyResponse, status int) {
	w.t.Helper()
	for start := time.Now(); w.bearer(k, k.Namespaces[0], http.MethodGet, "/v1/functions") != status; {
		if time.Since(start) > 10*time.Second {
			w.t.Fatalf("key %s is not answered with %d", k.ID, status)
		}
	}
}

// bearer asks with a bearer token and returns the status.
func (w *world) bearer(k api.KeyResponse, namespace, method, path string) int {
	return w.ask(method, path, namespace, "Bearer "+k.ID+":"+k.Secret)
}

func (w *world) ask(method, path, namespace, authorization string) int {
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.URL+path, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	if namespace != "" && namespace != "*" {
		req.Header.Set(api.HeaderNamespace, namespace)
	}
	resp, err := w.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestWhatKeysAreFor(t *testing.T) {
	w := newWorld(t)
	all, one := w.key(api.KeyRequest{Namespaces: []string{"*"}}), w.key(api.KeyRequest{Namespaces: []string{"a", "b"}})
	invoke := w.key(api.KeyRequest{Namespaces: []string{"a"}, InvokeOnly: true})
	wrong := one
	wrong.Secret = all.Secret
	for _, c := range []struct {
		name                    string
		key                     api.KeyResponse
		namespace, method, path string
		want                    int
	}{
		{"all namespaces", all, "x", "POST", "/v1/functions", 200},
		{"its namespace", one, "b", "DELETE", "/v1/functions/f", 200},
		{"the first one by default", one, "", "POST", "/v1/functions", 200},
		{"another namespace", one, "c", "GET", "/v1/functions", 403},
		{"invoking", invoke, "a", "POST", "/v1/functions/f/invocations", 200},
		{"invoking as AWS", invoke, "a", "POST", "/2015-03-31/functions/f/invocations", 200},
		{"invoking by path", invoke, "a", "PUT", "/v1/functions/f/web/x", 200},
		{"looking", invoke, "a", "GET", "/v1/functions/f", 200},
		{"making", invoke, "a", "POST", "/v1/functions", 403},
		{"deleting", invoke, "a", "DELETE", "/v1/functions/f", 403},
		{"another key's secret", wrong, "a", "GET", "/v1/functions", 401},
		{"no key", api.KeyResponse{}, "a", "GET", "/v1/functions", 401},
	} {
		if got := w.bearer(c.key, c.namespace, c.method, c.path); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if strings.Contains(w.log.String(), one.Secret) || strings.Contains(w.log.String(), all.Secret) {
		t.Error("a secret is in the log")
	}
}

func TestRevokedAndExpired(t *testing.T) {
	w := newWorld(t)
	k := w.key(api.KeyRequest{Namespaces: []string{"a"}})
	if err := w.keys.Revoke(t.Context(), k.ID); err != nil {
		t.Fatal(err)
	}
	w.until(k, http.StatusUnauthorized)
	if err := w.keys.Revoke(t.Context(), k.ID); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("revoked twice: %v", err)
	}
	short := w.key(api.KeyRequest{Namespaces: []string{"a"}, TTL: 3 * time.Second})
	w.until(short, http.StatusUnauthorized)
	for _, bad := range []api.KeyRequest{{}, {Namespaces: []string{"a/b"}}, {Namespaces: []string{"a"}, TTL: -1}, {Namespaces: make([]string, 101)}} {
		if _, err := w.keys.Create(t.Context(), bad); !errors.Is(err, access.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// sdk is AWS's own client with a key.
func (w *world) sdk(id, secret string, change ...func(*http.Request)) *lambda.Client {
	return lambda.New(lambda.Options{
		BaseEndpoint: aws.String(w.URL), Region: "eu-west-1", Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
		RetryMaxAttempts: 1, HTTPClient: changing{w.Client(), change},
	})
}

// changing changes requests after they were signed.
type changing struct {
	client *http.Client
	change []func(*http.Request)
}

func (c changing) Do(r *http.Request) (*http.Response, error) {
	for _, change := range c.change {
		change(r)
	}
	return c.client.Do(r)
}

func TestSignatures(t *testing.T) {
	w := newWorld(t)
	k := w.key(api.KeyRequest{Namespaces: []string{"a"}})
	invoke := func(c *lambda.Client) (string, error) {
		out, err := c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("arn:aws:lambda:x:1:function:f:1"), Payload: []byte(`{"a":[1,2]}`), ClientContext: aws.String("e30=")})
		if err != nil {
			return "", err
		}
		return string(out.Payload), nil
	}
	if got, err := invoke(w.sdk(k.ID, k.Secret)); err != nil || got != `{"a":[1,2]}` {
		t.Fatalf("%s, %v; %s", got, err, w.log)
	}
	for name, c := range map[string]*lambda.Client{
		"another secret": w.sdk(k.ID, "x"),
		"another key":    w.sdk("XYLMNONE", k.Secret),
		"another body": w.sdk(k.ID, k.Secret, func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(`{"a":[1,3]}`))
		}),
		"another path":   w.sdk(k.ID, k.Secret, func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/2015-03-31/functions/g/invocations", "" }),
		"another header": w.sdk(k.ID, k.Secret, func(r *http.Request) { r.Header.Set("X-Amz-Client-Context", "e31=") }),
		"another time": w.sdk(k.ID, k.Secret, func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().UTC().Add(-time.Minute).Format("20060102T150405Z"))
		}),
		"an old time": w.sdk(k.ID, k.Secret, func(r *http.Request) { r.Header.Set("X-Amz-Date", "20200101T000000Z") }),
	} {
		if got, err := invoke(c); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestStrangeAuthorization(t *testing.T) {
	w := newWorld(t)
	for _, text := range []string{
		"", "Bearer", "Bearer :", "Bearer " + strings.Repeat("x", 10_000), "Basic eDp5", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a/b/c",
		"AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host, Signature=00", "AWS4-HMAC-SHA256 Credential=////aws4_request,SignedHeaders=,Signature=",
	} {
		if got := w.ask(http.MethodGet, "/v1/functions", "a", text); got != http.StatusUnauthorized {
			t.Errorf("%.60q: %d", text, got)
		}
	}
}
