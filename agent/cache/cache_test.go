package cache_test

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// logBook collects log lines.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// lines returns the lines of level WARN and above.
func (l *logBook) lines() (warnings []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			warnings = append(warnings, line)
		}
	}
	return warnings
}

func (l *logBook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func open(t *testing.T, cfg cache.Config) *cache.Cache {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	c, err := cache.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func openFile(t *testing.T, c *cache.Cache, blob *blocktest.Blob, src blockfmt.Source, touched func(int)) *cache.File {
	t.Helper()
	f, err := c.OpenFile(blob.Index, src, touched)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

// checkRange fills a range and compares what the file then holds.
func checkRange(t *testing.T, f *cache.File, blob *blocktest.Blob, off, n int) {
	t.Helper()
	if err := f.Fill(t.Context(), int64(off), int64(n)); err != nil {
		t.Errorf("fill %d bytes at %d: %v", n, off, err)
		return
	}
	got := make([]byte, min(n, len(blob.Raw)-off))
	if _, err := f.File().ReadAt(got, int64(off)); err != nil {
		t.Errorf("read %d bytes at %d: %v", n, off, err)
	} else if !bytes.Equal(got, blob.Raw[off:off+len(got)]) {
		t.Errorf("wrong bytes in [%d, %d)", off, off+n)
	}
}

func TestStore(t *testing.T) {
	blocktest.Store(t, func(t *testing.T) blockfmt.Store { return open(t, cache.Config{}) })
}

func TestStoreAfterReopen(t *testing.T) {
	blocktest.Source(t, func(t *testing.T, blob *blocktest.Blob) blockfmt.Source {
		dir := t.TempDir()
		c, err := cache.Open(cache.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range blob.Refs() {
			if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		return open(t, cache.Config{Dir: dir})
	})
}
