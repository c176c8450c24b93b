package cache

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/xylem-project/xylem/blockfmt"
)

// File is the decompressed data of a blob, in a sparse file that fills as it is read. All Files of a blob share the data;
// each has a Source of its own, because one image's registry may give what another's does not. Safe for concurrent use.
type File struct {
	blob    *blob
	source  blockfmt.Source
	touch   func(block int)
	touched bitmap // blocks that touch was called for; empty without touch
	closed  atomic.Bool
}

// OpenFile opens the blob that ix describes. Blocks that are missing are asked of source; what it gives is verified
// here. touched, if not nil, is called when a block is demanded for the first time through this File, in the order of demand, before
// it is fetched; it must not block. Close the File when done.
func (c *Cache) OpenFile(ix *blockfmt.Index, source blockfmt.Source, touched func(block int)) (*File, error) {
	c.opening.Lock()
	defer c.opening.Unlock()
	b, err := c.openBlob(ix)
	if err != nil {
		return nil, err
	}
	f := &File{blob: b, source: source, touch: touched}
	if touched != nil {
		f.touched = newBitmap(ix.Len())
	}
	b.mu.Lock()
	b.files[f] = true
	b.mu.Unlock()
	b.maybeFinish()
	return f, nil
}

// Close gives the File back. Fills that are under way fail when nobody else has the blob open.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.blob.mu.Lock()
	delete(f.blob.files, f)
	f.blob.mu.Unlock()
	f.blob.cache.opening.Lock()
	defer f.blob.cache.opening.Unlock()
	return f.blob.release()
}

// Size returns the uncompressed size in bytes.
func (f *File) Size() int64 { return f.blob.ix.RawSize() }

// File returns the open file with the data. Only what Fill has made valid may be read. It stays the same, and stays
// valid until Close, when the file gets another name.
func (f *File) File() *os.File { return f.blob.data }

// Path returns the name of the file. It changes once, when Complete becomes true.
func (f *File) Path() string {
	f.blob.mu.Lock()
	defer f.blob.mu.Unlock()
	return f.blob.path()
}

// Complete says whether all data is in the file and synced: it can be used by its Path, without Fill, as long as the
// File is open.
func (f *File) Complete() bool {
	f.blob.mu.Lock()
	defer f.blob.mu.Unlock()
	return f.blob.complete
}

// Fill makes the bytes [off, off+n) of File valid, cut to Size. When it returns nil, they are; else it returns the first
// error. Without missing blocks it takes no lock and allocates nothing.
func (f *File) Fill(ctx context.Context, off, n int64) error {
	first, end := f.blob.ix.Find(off, n)
	if f.ready(first, end) && !f.closed.Load() {
		return nil
	}
	return f.fill(ctx, first, end)
}

func (f *File) ready(first, end int) bool {
	for i := first; i < end; i++ {
		if !f.blob.good.get(i) || (f.touch != nil && !f.touched.get(i)) {
			return false
		}
	}
	return true
}

// fill is Fill with blocks to wait for. It keeps at most Config.Fetches of them under way.
func (f *File) fill(ctx context.Context, first, end int) error {
	if f.closed.Load() {
		return fmt.Errorf("%s: %w", f.blob.ix.Blob(), os.ErrClosed)
	}
	waiting := make([]*fill, 0, min(end-first, f.blob.cache.cfg.Fetches))
	var failed error
	for i := first; i < end && failed == nil; i++ {
		if f.touch != nil && f.touched.set(i) {
			f.touch(i)
		}
		if f.blob.good.get(i) {
			continue
		}
		if len(waiting) == f.blob.cache.cfg.Fetches {
			failed, waiting = f.wait(ctx, waiting[0]), waiting[1:]
		}
		if failed == nil {
			waiting = append(waiting, f.blob.join(ctx, f, i, false))
		}
	}
	for _, k := range waiting {
		if failed != nil {
			f.blob.leave(k)
		} else {
			failed = f.wait(ctx, k)
		}
	}
	return failed
}

// Prefetch makes block i valid ahead of demand. The caller says by ctx that it can wait (blockfmt.Background).
func (f *File) Prefetch(ctx context.Context, block int) error {
	if f.closed.Load() {
		return fmt.Errorf("%s: %w", f.blob.ix.Blob(), os.ErrClosed)
	}
	if block < 0 || block >= f.blob.ix.Len() || f.blob.good.get(block) {
		return nil
	}
	return f.wait(ctx, f.blob.join(ctx, f, block, true))
}

// wait waits for a fill and gives it back. One that failed on behalf of another File is tried once more with this File's Source.
func (f *File) wait(ctx context.Context, k *fill) error {
	for again := true; ; again = false {
		select {
		case <-k.done:
		case <-ctx.Done():
			f.blob.leave(k)
			return fmt.Errorf("%v: %w", f.blob.ix.Ref(k.block), context.Cause(ctx))
		}
		if k.err == nil || k.by == f || !again || ctx.Err() != nil {
			return k.err
		}
		k = f.blob.join(ctx, f, k.block, k.background)
	}
}
