package clienttest

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// origin is a registry on loopback that counts the reads of its blobs.
type origin struct {
	host string // host:port
	end  func() // of the registry: nobody listens there any more

	mu    sync.Mutex
	login [2]string      // user and password that it asks for, if not empty
	reads map[string]int // of blobs, by digest
}

func serveOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{reads: map[string]int{}}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.admits(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	o.end = sync.OnceFunc(server.Close)
	t.Cleanup(o.end)
	o.host = strings.TrimPrefix(server.URL, "http://")
	return o
}

// admits counts a request, or asks for a login.
func (o *origin) admits(w http.ResponseWriter, r *http.Request) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if user, password, _ := r.BasicAuth(); [2]string{user, password} != o.login {
		w.Header().Set("WWW-Authenticate", `Basic realm="origin"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet {
		o.reads[digest]++
	}
	return true
}

// lock makes the registry ask for a login from now on.
func (o *origin) lock(user, password string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.login = [2]string{user, password}
}

// wasRead checks that each of these blobs, and no other, was read once.
func (o *origin) wasRead(t *testing.T, blobs ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	want := map[string]int{}
	for _, b := range blobs {
		want[b] = 1
	}
	if !maps.Equal(o.reads, want) {
		t.Errorf("reads of the registry: %v, want %v", o.reads, want)
	}
}

// serveProxy runs a registry proxy until the test ends and returns its address. Requests that name no registry are for upstream.
func serveProxy(t *testing.T, upstream string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	cfg := agent.Default()
	cfg.Root, cfg.State, cfg.Admin = filepath.Join(t.TempDir(), "root"), t.TempDir(), ""
	cfg.Proxy.Listen, cfg.Proxy.DefaultUpstream = l.Addr().String(), upstream
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	must(t, l.Close()) // for the proxy to take
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agent.RunProxy(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	waitFor(t, cfg.Proxy.Listen)
	return cfg.Proxy.Listen
}

// waitFor returns when something listens at an address. The test's own time limit ends it.
func waitFor(t *testing.T, address string) {
	t.Helper()
	var dialer net.Dialer
	for ; ; <-time.After(5 * time.Millisecond) {
		if c, err := dialer.DialContext(t.Context(), "tcp", address); err == nil {
			_ = c.Close()
			return
		}
	}
}

// run returns what a command prints.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := output(cmd)
	must(t, err)
	return out
}

// shortDir returns a directory for sockets, whose paths must not be long, until the test ends.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "client")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// output returns what a command prints, and in the error what it says of it.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%v: %w\n%s%s", cmd.Args, err, out, stderr.String())
	}
	return string(out), err
}

// between returns what is behind from and before to.
func between(t *testing.T, text, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, from)
	part, _, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("nothing between %q and %q", from, to)
	}
	return part
}

// replaced returns text with what must be in it replaced.
func replaced(t *testing.T, text, old, by string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("no %q in %q", old, text)
	}
	return strings.ReplaceAll(text, old, by)
}
