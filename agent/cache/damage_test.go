package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// session opens a cache, does something with a File of the blob, and closes both.
func session(t *testing.T, cfg cache.Config, blob *blocktest.Blob, do func(*cache.Cache, *cache.File)) *blocktest.Counting {
	t.Helper()
	count := &blocktest.Counting{Next: blob}
	c, err := cache.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.OpenFile(blob.Index, count, nil)
	if err != nil {
		t.Fatal(err)
	}
	do(c, f)
	if err := errors.Join(f.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	return count
}

// waitComplete waits for the sync in the background.
func waitComplete(t *testing.T, f *cache.File) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f.Complete(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("file does not become complete")
		}
	}
}

// find returns the one file in a directory below dir whose name ends in suffix and, without one, not in .map.
func find(t *testing.T, dir, sub, suffix string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, sub, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, n := range names {
		if suffix != "" || !strings.HasSuffix(n, ".map") {
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s/*%s: %v, want one file", sub, suffix, found)
	}
	return found[0]
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestReopenKeepsData(t *testing.T) {
	blob := blocktest.NewBlob(1, 640<<10, 64<<10)
	cfg := cache.Config{Dir: t.TempDir()}
	session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, 300<<10) })
	count := session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, len(blob.Raw)) })
	if n := count.Total(); n != 5 {
		t.Errorf("%d blocks fetched after reopening, want the 5 that were missing", n)
	}
}

func TestCompleteFile(t *testing.T) {
	blob := blocktest.NewBlob(2, 640<<10, 64<<10)
	cfg := cache.Config{Dir: t.TempDir()}
	session(t, cfg, blob, func(c *cache.Cache, f *cache.File) {
		if f.Complete() {
			t.Error("complete without data")
		}
		checkRange(t, f, blob, 0, len(blob.Raw))
		waitComplete(t, f)
		checkRange(t, f, blob, 0, len(blob.Raw)) // by the descriptor that was opened under the other name
		if got, err := os.ReadFile(f.Path()); err != nil || string(got) != string(blob.Raw) {
			t.Errorf("file at Path: %d bytes, %v", len(got), err)
		}
		if l := c.List(); len(l) != 1 || !l[0].Complete || !l[0].Open || l[0].Valid != f.Size() {
			t.Errorf("list %+v", l)
		}
	})
	cfg.BootID = "another boot"
	count := session(t, cfg, blob, func(c *cache.Cache, f *cache.File) {
		if !f.Complete() || filepath.Base(filepath.Dir(f.Path())) != "complete" {
			t.Errorf("complete %v at %s", f.Complete(), f.Path())
		}
		checkRange(t, f, blob, 0, len(blob.Raw))
	})
	if count.Total() != 0 {
		t.Errorf("%d blocks fetched for a complete file", count.Total())
	}
}

// TestBoot: after a loss of power an unsynced file may hold anything, whatever its map says.
func TestBoot(t *testing.T) {
	blob := blocktest.NewBlob(3, 640<<10, 64<<10)
	cfg := cache.Config{Dir: t.TempDir(), BootID: "first"}
	session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, 300<<10) })
	cfg.BootID = "second"
	c := open(t, cfg)
	if l := c.List(); len(l) != 0 {
		t.Errorf("after another boot there is %+v", l)
	}
	count := &blocktest.Counting{Next: blob}
	checkRange(t, openFile(t, c, blob, count, nil), blob, 0, 300<<10)
	if count.Total() != 5 {
		t.Errorf("%d blocks fetched, want 5", count.Total())
	}
}

func TestFlippedBits(t *testing.T) {
	blob := blocktest.NewBlob(4, 640<<10, 64<<10)
	for name, test := range map[string]struct {
		sub, suffix string
		off         int64
		fetches     int // of the 10 blocks, of which 5 were there, or all if complete
	}{
		"sparse data":         {"sparse", "", 70 << 10, 6},
		"map forgets a block": {"sparse", ".map", 256, 6}, // bit 4 falls
		"bit beyond the end":  {"sparse", ".map", 257, 5}, // bit 12
		"checksum":            {"sparse", ".map", 256 + 8 + 1, 6},
		"header":              {"sparse", ".map", 80, 10},
		"complete data":       {"complete", "", 70 << 10, 1},
	} {
		t.Run(name, func(t *testing.T) {
			logs := &logBook{}
			cfg := cache.Config{Dir: t.TempDir(), Logger: logs.logger()}
			session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) {
				if test.sub == "complete" {
					checkRange(t, f, blob, 0, len(blob.Raw))
					waitComplete(t, f)
				}
				checkRange(t, f, blob, 0, 300<<10)
			})
			flip(t, find(t, cfg.Dir, test.sub, test.suffix), test.off)
			count := session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, len(blob.Raw)) })
			if n := count.Total(); n != test.fetches {
				t.Errorf("%d blocks fetched, want %d", n, test.fetches)
			}
			if w := logs.lines(); len(w) > 1 {
				t.Errorf("logged %q, want one line at most", w)
			}
		})
	}
}

// TestFalseBit: a bit that is set for a block which is not there must not let zeros pass for data.
func TestFalseBit(t *testing.T) {
	blob := blocktest.NewBlob(5, 640<<10, 64<<10)
	cfg := cache.Config{Dir: t.TempDir()}
	session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, 200<<10) })
	flip(t, find(t, cfg.Dir, "sparse", ".map"), 256) // bit 4
	count := session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, len(blob.Raw)) })
	if n := count.Total(); n != 6 {
		t.Errorf("%d blocks fetched, want 6", n)
	}
}

func TestDamagedBlock(t *testing.T) {
	blob := blocktest.NewBlob(6, 640<<10, 64<<10)
	ref := blob.Index.Ref(3)
	name := filepath.Join("blocks", ref.ID.String()[:2], ref.ID.String())
	for what, damage := range map[string]func(path string) error{
		"flipped":   func(path string) error { flip(t, path, ref.Length/2); return nil },
		"truncated": func(path string) error { return os.Truncate(path, ref.Length/2) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"longer":    func(path string) error { return os.Truncate(path, ref.Length+1) },
	} {
		for _, reopen := range []bool{false, true} {
			t.Run(what, func(t *testing.T) {
				logs := &logBook{}
				cfg := cache.Config{Dir: t.TempDir(), Logger: logs.logger()}
				c := open(t, cfg)
				if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
					t.Fatal(err)
				}
				if err := damage(filepath.Join(cfg.Dir, name)); err != nil {
					t.Fatal(err)
				}
				if reopen {
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
					c, _ = cache.Open(cfg)
					defer c.Close()
				}
				for range 2 {
					if _, err := c.Block(t.Context(), ref); !errors.Is(err, blockfmt.ErrNotFound) {
						t.Errorf("error %v, want ErrNotFound", err)
					}
				}
				if w := logs.lines(); len(w) != 1 || !strings.Contains(w[0], ref.ID.String()) {
					t.Errorf("logged %q, want one line with the block", w)
				}
				if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Block(t.Context(), ref); err != nil {
					t.Errorf("after another Put: %v", err)
				}
			})
		}
	}
}

// TestWrongLength: a reader with a Ref that lies about the length does not cost others the block.
func TestWrongLength(t *testing.T) {
	blob := blocktest.NewBlob(7, 64<<10, 64<<10)
	ref := blob.Index.Ref(0)
	c := open(t, cache.Config{})
	if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
		t.Fatal(err)
	}
	lie := ref
	lie.Length++
	if _, err := c.Block(t.Context(), lie); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
	if _, err := c.Block(t.Context(), ref); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestOpenCleansUp(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, cache.Config{Dir: dir}).Close(); err != nil {
		t.Fatal(err)
	}
	stray := []string{"tmp/17", "blocks/ab/abcd", "blocks/zz", "sparse/data-without-map", "sparse/x.map", "complete/data-without-map", "complete/y.map",
		"blocks/00/" + strings.Repeat("1", 64)}
	for _, s := range stray {
		path := filepath.Join(dir, s)
		if s == "blocks/zz" {
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("torn"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := cache.Open(cache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, s := range stray {
		if _, err := os.Lstat(filepath.Join(dir, s)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", s)
		}
	}
	if c.Used() != 0 {
		t.Errorf("%d bytes used", c.Used())
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	if second, err := cache.Open(cache.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		_ = second
		t.Errorf("second Open: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c2, err := cache.Open(cache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	_ = c2.Close()
}
