package cache_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// TestEverythingAtOnce opens, fills, prefetches, closes, puts, reads, evicts and scrubs at the same time, with sources that
// fail now and then: nobody ever sees wrong bytes, and the books balance in the end.
func TestEverythingAtOnce(t *testing.T) {
	var blobs []*blocktest.Blob
	for i := range uint64(4) {
		blobs = append(blobs, blocktest.NewBlob(i, 256<<10, 8<<10))
	}
	logs := &logBook{}
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir, Budget: 400 << 10, Fetches: 4, Logger: logs.logger()})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for range 60 {
				useFile(t, c, blobs[rand.IntN(len(blobs))])
			}
		})
		wg.Go(func() {
			for range 200 {
				useBlock(t, c, blobs[rand.IntN(len(blobs))])
			}
			if worker == 0 {
				c.GC(0)
			}
			if _, err := c.Scrub(t.Context(), 0); err != nil {
				t.Errorf("scrub: %v", err)
			}
			c.List()
			c.Usage()
		})
	}
	wg.Wait()
	for _, line := range logs.lines() {
		if strings.Contains(line, "damaged") {
			t.Errorf("nothing was damaged: %s", line)
		}
	}
	c.GC(0)
	if u := c.Usage(); u.Used != 0 || u.Blocks != 0 || u.OpenBytes != 0 || len(c.List()) != 0 {
		t.Errorf("after everything was closed and collected: %+v, %+v", u, c.List())
	}
	if n := diskUse(t, dir); n != 0 {
		t.Errorf("%d bytes left on disk", n)
	}
}

// useFile reads a few ranges of a blob, some of them with little patience, from a source that fails now and then.
func useFile(t *testing.T, c *cache.Cache, blob *blocktest.Blob) {
	src := &blocktest.Faulty{Next: blob, Plan: func(blockfmt.Ref, int) blocktest.Fault {
		if rand.IntN(10) == 0 {
			return []blocktest.Fault{blocktest.Transient, blocktest.WrongBytes, blocktest.TooShort}[rand.IntN(3)]
		}
		return blocktest.None
	}}
	f, err := c.OpenFile(blob.Index, src, func(int) {})
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			off, n := rand.IntN(len(blob.Raw)), 1+rand.IntN(64<<10)
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(5))*time.Millisecond+time.Minute*time.Duration(rand.IntN(2)))
			defer cancel()
			if err := f.Prefetch(ctx, rand.IntN(blob.Index.Len())); err != nil && !expected(err) {
				t.Errorf("prefetch: %v", err)
			}
			if err := f.Fill(ctx, int64(off), int64(n)); err != nil {
				if !expected(err) {
					t.Errorf("fill: %v", err)
				}
				return
			}
			got := make([]byte, min(n, len(blob.Raw)-off))
			if _, err := f.File().ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, blob.Raw[off:off+len(got)]) {
				t.Errorf("wrong bytes after a good Fill: %v", err)
			}
		})
	}
	wg.Wait()
}

func useBlock(t *testing.T, c *cache.Cache, blob *blocktest.Blob) {
	ref := blob.Index.Ref(rand.IntN(blob.Index.Len()))
	if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
		t.Errorf("put: %v", err)
	}
	got, err := c.Block(t.Context(), ref)
	if err == nil && !bytes.Equal(got, blob.Bytes(ref)) {
		t.Error("wrong block")
	} else if err != nil && !expected(err) {
		t.Errorf("block: %v", err)
	}
}

func expected(err error) bool {
	for _, kind := range []error{blockfmt.ErrTransient, blockfmt.ErrCorrupt, blockfmt.ErrNotFound, context.DeadlineExceeded} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
