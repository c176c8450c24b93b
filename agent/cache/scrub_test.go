package cache_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func TestScrub(t *testing.T) {
	open1, idle := blocktest.NewBlob(1, 640<<10, 64<<10), blocktest.NewBlob(2, 640<<10, 64<<10)
	logs := &logBook{}
	cfg := cache.Config{Dir: t.TempDir(), Logger: logs.logger()}
	session(t, cfg, idle, func(c *cache.Cache, f *cache.File) {
		checkRange(t, f, idle, 0, len(idle.Raw))
		waitComplete(t, f)
		for _, ref := range open1.Refs() {
			if err := c.Put(t.Context(), ref, open1.Bytes(ref)); err != nil {
				t.Fatal(err)
			}
		}
	})
	idleFile := find(t, cfg.Dir, "complete", "")
	c := open(t, cfg)
	f := openFile(t, c, open1, open1, nil)
	checkRange(t, f, open1, 0, 300<<10)

	want := cache.ScrubReport{Blocks: 10, Data: 15}
	for _, e := range open1.Refs() {
		want.Bytes += e.Length
	}
	want.Bytes += 5*64<<10 + 640<<10
	if got, err := c.Scrub(t.Context(), 0); err != nil || got != want || len(logs.lines()) != 0 {
		t.Fatalf("scrub of a sound cache: %+v, %v, %q; want %+v", got, err, logs.lines(), want)
	}

	ref := open1.Index.Ref(9)
	flip(t, filepath.Join(cfg.Dir, "blocks", ref.ID.String()[:2], ref.ID.String()), 5)
	flip(t, find(t, cfg.Dir, "sparse", ""), 70<<10)
	flip(t, idleFile, 1)
	got, err := c.Scrub(t.Context(), 0)
	if err != nil || got.BadBlocks != 1 || got.BadData != 2 || len(logs.lines()) != 3 {
		t.Errorf("scrub of a damaged cache: %+v, %v, %q; want 1 bad block and 2 bad data, one line for each", got, err, logs.lines())
	}
	if c.Has(ref) || len(c.List()) != 1 {
		t.Errorf("bad block still there: %v; blobs %+v", c.Has(ref), c.List())
	}
	checkRange(t, f, open1, 0, len(open1.Raw)) // the bad data was fetched again
	if got, err := c.Scrub(t.Context(), 0); err != nil || got.BadBlocks+got.BadData != 0 || got.Blocks != 9 || got.Data != 10 {
		t.Errorf("scrub afterwards: %+v, %v", got, err)
	}
}

// TestScrubOpenComplete: a file that a mount may read directly is repaired where it is.
func TestScrubOpenComplete(t *testing.T) {
	blob := blocktest.NewBlob(3, 640<<10, 64<<10)
	cfg := cache.Config{Dir: t.TempDir()}
	c := open(t, cfg)
	f := openFile(t, c, blob, blob, nil)
	checkRange(t, f, blob, 0, len(blob.Raw))
	waitComplete(t, f)
	flip(t, f.Path(), 100<<10)
	if got, err := c.Scrub(t.Context(), 0); err != nil || got.BadData != 1 {
		t.Errorf("scrub: %+v, %v", got, err)
	}
	waitComplete(t, f)
	if got, err := c.Scrub(t.Context(), 0); err != nil || got.BadData != 0 || got.Data != 10 {
		t.Errorf("scrub afterwards: %+v, %v", got, err)
	}
	checkRange(t, f, blob, 0, len(blob.Raw))
}

func TestScrubRate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(4, 640<<10, 64<<10)
		c := open(t, cache.Config{Dir: dir})
		f := openFile(t, c, blob, blob, nil)
		checkRange(t, f, blob, 0, len(blob.Raw))
		start := time.Now()
		if _, err := c.Scrub(t.Context(), 64<<10); err != nil || time.Since(start).Round(time.Second) != 10*time.Second {
			t.Errorf("640 KiB at 64 KiB/s took %v, %v", time.Since(start), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if got, err := c.Scrub(ctx, 64<<10); !errors.Is(err, context.DeadlineExceeded) || got.Data >= 5 {
			t.Errorf("canceled scrub: %+v, %v", got, err)
		}
		waitForSync(t, f)
	})
}

// waitForSync lets the sync of a complete file end within the bubble.
func waitForSync(t *testing.T, f *cache.File) {
	t.Helper()
	for range 1000 {
		if f.Complete() {
			return
		}
		<-time.After(time.Second) // virtual
	}
	t.Error("file does not become complete")
}
