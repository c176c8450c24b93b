package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/agent/snapshotter"
	"github.com/xylem-project/xylem/blockfmt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logBuffer is a bytes.Buffer for concurrent use.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func twoLayers() map[string][]byte {
	return map[string][]byte{"a/small": []byte("hello\n"), "b/big": noise(1, 6<<20+123)}
}

func TestMountReadsLazilyFromTheRegistry(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	w.convert(nodeKey(t, cfg), nil)
	n := startNode(t, cfg)
	dir := n.mount(w.ref)
	if got := w.ranges.Load(); got != 0 {
		t.Errorf("%d reads of blobs before anything was read of the mount", got)
	}
	got, err := read(t, filepath.Join(dir, "a/small"))
	must(t, err)
	if string(got) != "hello\n" || w.ranges.Load() != 1 {
		t.Errorf("read %q with %d requests, want the one block", got, w.ranges.Load())
	}
	assertSame(t, dir, w.files)
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err == nil {
		t.Error("the mount is writable")
	}
}

func TestCompleteBlobsAreReadWithoutRegistryAndFUSE(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	w.convert(nodeKey(t, cfg), nil)
	n := startNode(t, cfg)
	assertSame(t, n.mount(w.ref), w.files)
	must(t, n.stop())

	w.fail(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			http.Error(rw, "gone", http.StatusNotFound)
			return true
		}
		return false
	})
	n = startNode(t, cfg)
	assertSame(t, n.mount(w.ref), w.files)
	if entries, err := os.ReadDir(filepath.Join(cfg.State, "blobs")); err != nil || len(entries) != 0 {
		t.Errorf("complete blobs are served by FUSE: %v, %v", entries, err)
	}
}

// TestFaultsOfTheRegistry has each fault while a mounted image is read: the reader gets EIO within the bound, and the right
// bytes once the fault is over.
func TestFaultsOfTheRegistry(t *testing.T) {
	stall := make(chan struct{})
	t.Cleanup(func() { close(stall) })
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(rw http.ResponseWriter, r *http.Request) bool { rw.WriteHeader(code); return true }
	}
	garbage := func(length func(int) int) func(http.ResponseWriter, *http.Request) bool {
		return func(rw http.ResponseWriter, r *http.Request) bool {
			first, last := parseRange(r.Header.Get("Range"))
			body := noise(7, length(last-first+1))
			rw.Header().Set("Content-Range", "bytes "+strconv.Itoa(first)+"-"+strconv.Itoa(last)+"/*")
			rw.Header().Set("Content-Length", strconv.Itoa(last-first+1))
			rw.WriteHeader(http.StatusPartialContent)
			rw.Write(body)
			return true
		}
	}
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"404": status(404), "401": status(401), "403": status(403), "429": status(429), "503": status(503),
		"wrong bytes": garbage(func(n int) int { return n }), "truncated": garbage(func(n int) int { return n / 2 }),
		"stall": func(rw http.ResponseWriter, r *http.Request) bool {
			select {
			case <-stall:
			case <-r.Context().Done():
			}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, cfg := newWorld(t, twoLayers()), testConfig(t)
			cfg.ReadTimeout = Duration{2 * time.Second}
			w.convert(nodeKey(t, cfg), nil)
			n := startNode(t, cfg)
			dir := n.mount(w.ref)
			w.fail(func(rw http.ResponseWriter, r *http.Request) bool { return r.Header.Get("Range") != "" && fault(rw, r) })
			start := time.Now()
			got, err := read(t, filepath.Join(dir, "b/big"))
			if err == nil || !strings.Contains(err.Error(), "Input/output error") {
				t.Errorf("read %d bytes, %v; want EIO", len(got), err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("EIO after %v, the bound is 2 s", took)
			}
			if !strings.Contains(n.log.String(), "level=WARN") && !strings.Contains(n.log.String(), "level=ERROR") {
				t.Error("nothing in the log")
			}
			w.fail(nil)
			waitFor(t, "right bytes after the fault", func() bool {
				got, err := read(t, filepath.Join(dir, "b/big"))
				return err == nil && bytes.Equal(got, w.files["b/big"])
			})
		})
	}
}

func parseRange(h string) (first, last int) {
	a, b, _ := strings.Cut(strings.TrimPrefix(h, "bytes="), "-")
	first, _ = strconv.Atoi(a)
	last, _ = strconv.Atoi(b)
	return first, last
}

func TestImagesOfUnknownConvertersAreNotUsed(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	_, stranger, err := ed25519.GenerateKey(nil)
	must(t, err)
	w.convert(stranger, nil)
	n := startNode(t, cfg)
	if _, err := n.Mount(t.Context(), w.ref, t.TempDir()); err == nil || !strings.Contains(err.Error(), "not trusted") {
		t.Errorf("mount of an image by an unknown converter: %v", err)
	}
	must(t, n.stop())

	cfg.TrustedKeys = []string{filepath.Join(t.TempDir(), "stranger.pem")}
	must(t, os.WriteFile(cfg.TrustedKeys[0], publicPEM(t, stranger), 0o600))
	n = startNode(t, cfg)
	assertSame(t, n.mount(w.ref), w.files)
}

func TestStartupRecordOfTheFirstRunIsKeptAndPrefetched(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	w.convert(nodeKey(t, cfg), nil)
	n := startNode(t, cfg)
	dir := n.mount(w.ref)
	if _, err := read(t, filepath.Join(dir, "b/big")); err != nil {
		t.Fatal(err)
	}
	must(t, n.Unmount(t.Context(), dir))
	must(t, n.stop()) // ends the recording
	images, err := filepath.Glob(filepath.Join(cfg.Root, "images", "*", recordFile))
	must(t, err)
	if len(images) != 1 {
		t.Fatalf("records %v, want one", images)
	}
	text, err := os.ReadFile(images[0])
	must(t, err)
	record, err := blockfmt.ParseRecord(text)
	must(t, err)
	for _, pos := range record {
		if pos.Layer != 1 {
			t.Errorf("record has block %v, only layer 1 was read", pos)
		}
	}
	if len(record) != 13 { // of 512 KiB in 6 MiB and a bit
		t.Errorf("record has %d blocks, want 13", len(record))
	}
}

func TestProfileLaysStartupFilesOutFirst(t *testing.T) {
	files := map[string][]byte{"app": noise(3, 8<<20)}
	w, cfg := newWorld(t, files), testConfig(t)
	key := nodeKey(t, cfg)
	w.convert(key, nil)
	n := startNode(t, cfg)
	must(t, n.StartRecording(t.Context(), w.ref))
	dir := n.mount(w.ref)
	for _, off := range []int64{7 << 20, 1 << 20} { // a page in the middle of two far blocks
		if got := readAt(t, filepath.Join(dir, "app"), off, 4096); !bytes.Equal(got, files["app"][off:off+4096]) {
			t.Errorf("wrong bytes at %d", off)
		}
	}
	must(t, n.Unmount(t.Context(), dir))
	profile, err := n.StopRecording(t.Context(), w.ref)
	must(t, err)
	if len(profile) < 2 || profile[0].Offset != 7<<20 || profile[0].Path != "app" || profile[0].Length > 64<<10 {
		t.Fatalf("profile %+v, want the two pages in the order of their reads", profile)
	}
	must(t, n.stop())

	result := w.convert(key, profile)
	if got := result.Artifact.Layers[0].StartupBlocks; got != 1 {
		t.Errorf("%d startup blocks, want 1 for two pages", got)
	}
	w.ranges.Store(0)
	fresh := testConfig(t)
	must(t, os.MkdirAll(fresh.Root, 0o700))
	copyFile(t, cfg.KeyFile(), fresh.KeyFile())
	n = startNode(t, fresh)
	dir = n.mount(w.ref)
	waitFor(t, "prefetch", func() bool { return strings.Contains(n.log.String(), "startup blocks fetched") })
	before := w.ranges.Load()
	for _, off := range []int64{7 << 20, 1 << 20} {
		if got := readAt(t, filepath.Join(dir, "app"), off, 4096); !bytes.Equal(got, files["app"][off:off+4096]) {
			t.Errorf("wrong bytes at %d of the laid out image", off)
		}
	}
	if after := w.ranges.Load(); before != 1 || after != before {
		t.Errorf("%d requests before the reads and %d after, want 1 and 1: both pages lie in the first block", before, after)
	}
	assertSame(t, dir, files)
}

func TestPulledImageIsConvertedInTheBackground(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	cfg.Convert = "background"
	n := startNode(t, cfg)
	if _, err := n.Mount(t.Context(), w.ref, t.TempDir()); err == nil {
		t.Fatal("an image without block image was mounted")
	}
	waitFor(t, "conversion", func() bool { return strings.Contains(n.log.String(), "image converted for the next pull") })
	ranges := w.ranges.Load()
	assertSame(t, n.mount(w.ref), w.files)
	if got := w.ranges.Load(); got != ranges {
		t.Errorf("%d reads of the registry's blobs, the image was converted here", got-ranges)
	}
}

func TestPrefixesOfTheLayerChainAreMounted(t *testing.T) {
	w, cfg := newWorld(t, map[string][]byte{"1": []byte("one"), "2": []byte("two"), "3": []byte("three")}), testConfig(t)
	a := w.convert(nodeKey(t, cfg), nil).Artifact
	images := runImages(t, cfg)
	for i, chain := range a.ChainIDs() {
		must(t, images.Resolve(t.Context(), snapshotter.Request{Ref: w.ref, Manifest: a.Source.Digest, ChainID: chain}))
		dir, err := images.Mount(t.Context(), chain)
		must(t, err)
		entries, err := os.ReadDir(dir)
		must(t, err)
		if len(entries) != i+1 {
			t.Errorf("prefix of %d layers has %v", i+1, entries)
		}
		must(t, images.Unmount(t.Context(), chain))
	}
	for _, chain := range a.ChainIDs() {
		must(t, images.Forget(t.Context(), chain))
	}
	if left, err := os.ReadDir(filepath.Join(cfg.Root, "images")); err != nil || len(left) != 0 {
		t.Errorf("images that containerd removed are still here: %v, %v", left, err)
	}
}

func TestSecondAgentOnTheSameRootIsRefused(t *testing.T) {
	cfg := testConfig(t)
	startNode(t, cfg)
	other := cfg
	other.State += "2"
	if err := Run(t.Context(), other); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("second agent: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"relative root":            func(c *Config) { c.Root = "x" },
		"colon in state":           func(c *Config) { c.State = "/run/a:b" },
		"no read timeout":          func(c *Config) { c.ReadTimeout = Duration{} },
		"convert":                  func(c *Config) { c.Convert = "maybe" },
		"no time for conversions":  func(c *Config) { c.ConvertWait = Duration{} },
		"mount way":                func(c *Config) { c.MountWay = "magic" },
		"trusted key":              func(c *Config) { c.TrustedKeys = []string{"/nonexistent"} },
		"plugins without programs": func(c *Config) { c.CredentialProviderConfig = "/etc/config.yaml" },
		"programs without plugins": func(c *Config) { c.CredentialProviderBinDir = "/bin" },
		"relative plugins":         func(c *Config) { c.CredentialProviderConfig, c.CredentialProviderBinDir = "config.yaml", "/bin" },
		"no plugins":               func(c *Config) { c.CredentialProviderConfig, c.CredentialProviderBinDir = "/nonexistent", "/bin" },
		"registry limit":           func(c *Config) { c.RegistryLimit = 50 },
		"limit of a registry":      func(c *Config) { c.Registries = map[string]RegistryConfig{"r": {Limit: 50}} },
		"registry ca":              func(c *Config) { c.Registries = map[string]RegistryConfig{"r": {CA: "/dev/null"}} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			change(&cfg)
			if err := Run(t.Context(), cfg); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want an error in one line", err)
			}
		})
	}
}

func TestAdminAPIRefusesBadRequests(t *testing.T) {
	n := startNode(t, testConfig(t))
	for _, dir := range []string{"relative", "/nonexistent-xylem"} {
		if _, err := n.Mount(t.Context(), "127.0.0.1:1/none", dir); err == nil {
			t.Errorf("mount at %q was accepted", dir)
		}
	}
	if err := n.Unmount(t.Context(), "/tmp"); err == nil || !strings.Contains(err.Error(), "mounted nothing there") {
		t.Errorf("unmount of a foreign directory: %v", err)
	}
	if _, err := n.StopRecording(t.Context(), "not a reference!"); err == nil {
		t.Error("recording of an impossible reference was stopped")
	}
	if err := NewClient("/nonexistent.sock").Unmount(t.Context(), "/tmp"); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("without an agent: %v", err)
	}
}

func TestObservability(t *testing.T) {
	a := &agent{metrics: newMetrics()}
	server := httptest.NewServer(a.observability())
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	get := func(path string) (int, string) {
		resp, err := server.Client().Get(server.URL + path)
		must(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(text)
	}
	if code, _ := get("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz of a starting agent: %d", code)
	}
	a.ready.Store(true)
	a.metrics.fetched(42, nil)
	if code, _ := get("/readyz"); code != http.StatusOK {
		t.Errorf("readyz of a running agent: %d", code)
	}
	if _, text := get("/metrics"); !strings.Contains(text, "xylem_fetch_bytes_total 42") {
		t.Error("metrics lack the fetched bytes")
	}
	if code, _ := get("/v1/images"); code != http.StatusNotFound {
		t.Errorf("control calls are reachable without the socket: %d", code)
	}
}

// runImages returns the Images of an agent without its servers.
func runImages(t *testing.T, cfg Config) *Images {
	t.Helper()
	must(t, cfg.validate())
	a := &agent{cfg: cfg, metrics: newMetrics()}
	var stop closers
	t.Cleanup(func() { must(t, stop.close()) })
	must(t, a.start(context.Background(), &stop))
	return a.images
}
