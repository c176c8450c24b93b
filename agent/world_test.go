package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

// world is a registry on loopback with faults, and one image in it.
type world struct {
	t     *testing.T
	url   string // host:port
	ref   string
	files map[string][]byte
	// fault handles a request instead of the registry if it returns true.
	fault  atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
	ranges atomic.Int64 // requests for parts of blobs
}

func newWorld(t *testing.T, files map[string][]byte) *world {
	t.Helper()
	w := &world{t: t, files: files}
	registry := ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)), ggcr.WithReferrersSupport(true))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			w.ranges.Add(1)
		}
		if f := w.fault.Load(); f == nil || !(*f)(rw, r) {
			registry.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(server.Close)
	w.url = strings.TrimPrefix(server.URL, "http://")
	w.ref = w.url + "/app:v1"
	w.push(w.ref, files)
	return w
}

// push pushes an image with one layer a file, in the order of their names.
func (w *world) push(ref string, files map[string][]byte) {
	w.t.Helper()
	tag, err := name.ParseReference(ref)
	must(w.t, err)
	must(w.t, remote.Write(tag, imageOf(w.t, files)))
}

// imageOf returns an image with one layer a file, in the order of their names.
func imageOf(t *testing.T, files map[string][]byte) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, name := range slices.Sorted(mapKeys(files)) {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		must(t, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(1e9, 5)}))
		_, err := tw.Write(files[name])
		must(t, err)
		must(t, tw.Close())
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		must(t, err)
		img, err = mutate.AppendLayers(img, layer)
		must(t, err)
	}
	return img
}

// convert makes and pushes the block image of the world's image, signed with key.
func (w *world) convert(key ed25519.PrivateKey, profile blockfmt.Profile) *convert.Result {
	w.t.Helper()
	src, err := convert.Open(w.t.Context(), w.ref, "", convert.Registry{})
	must(w.t, err)
	r, err := convert.Convert(w.t.Context(), src, convert.Options{Key: key, Profile: profile})
	must(w.t, err)
	w.t.Cleanup(func() { r.Close() })
	must(w.t, r.Push(w.t.Context(), "", "", convert.Registry{}))
	return r
}

func (w *world) fail(f func(rw http.ResponseWriter, r *http.Request) bool) {
	if f == nil {
		w.fault.Store(nil)
		return
	}
	w.fault.Store(&f)
}

// node is a running agent.
type node struct {
	*Client
	t    *testing.T
	cfg  Config
	log  *logBuffer
	stop func() error
}

func testConfig(t *testing.T) Config {
	dir, err := os.MkdirTemp("", "xylem-") // short: sockets lie in it
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	cfg := Default()
	cfg.Root, cfg.State, cfg.Admin, cfg.MountWay = filepath.Join(dir, "root"), filepath.Join(dir, "run"), "", "file"
	cfg.Proxy.Listen = ""
	cfg.ReadTimeout, cfg.BackgroundFetch = Duration{5 * time.Second}, 0 // so that requests can be counted
	return cfg
}

func startNode(t *testing.T, cfg Config) *node {
	t.Helper()
	n := &node{t: t, cfg: cfg, log: &logBuffer{}, Client: NewClient(cfg.AdminSocket())}
	cfg.Log = slog.New(slog.NewTextHandler(n.log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	stopped := false
	n.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		n.http.CloseIdleConnections()
		return <-done
	}
	t.Cleanup(func() {
		if err := n.stop(); err != nil {
			t.Errorf("agent: %v", err)
		}
		if t.Failed() {
			t.Logf("agent's log:\n%s", n.log)
		}
		assertNoMounts(t, cfg.State)
	})
	waitFor(t, "agent", func() bool { _, err := n.Images(t.Context()); return err == nil })
	return n
}

// key returns the node's converter key.
func nodeKey(t *testing.T, cfg Config) ed25519.PrivateKey {
	key, err := convert.GenerateKey(cfg.KeyFile())
	must(t, err)
	return key
}

// mount mounts the world's image and returns the directory.
func (n *node) mount(ref string) string {
	n.t.Helper()
	dir := n.t.TempDir()
	_, err := n.Mount(n.t.Context(), ref, dir)
	must(n.t, err)
	n.t.Cleanup(func() { n.Unmount(context.Background(), dir) }) // may be done already
	return dir
}

// read reads a file in a child process: this one serves the mount.
func read(t *testing.T, path string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "cat", path)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, err
}

func assertSame(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, want := range files {
		got, err := read(t, filepath.Join(dir, name))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from the %d that were put into the image", name, len(got), len(want))
		}
	}
}

func assertNoMounts(t *testing.T, below string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(text), " "+below+"/") {
		t.Errorf("mounts left below %s", below)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 20 s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b) //nolint:errcheck // never fails
	return b
}
