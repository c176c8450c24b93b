package fuse_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
)

// lazyBlob is a Blob whose file is sparse until it is asked for, page by page.
type lazyBlob struct {
	data  []byte
	file  *os.File
	fills atomic.Int64 // pages written
	calls atomic.Int64 // calls of Fill

	mu     sync.Mutex
	filled map[int64]bool                                // pages; guarded by mu
	before func(ctx context.Context, off, n int64) error // guarded by mu; may be nil
}

func newLazyBlob(t testing.TB, size int) *lazyBlob {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)})
	if _, err := rnd.Read(data); err != nil {
		t.Fatal(err)
	}
	return &lazyBlob{data: data, file: f, filled: map[int64]bool{}}
}

func (b *lazyBlob) Size() int64    { return int64(len(b.data)) }
func (b *lazyBlob) File() *os.File { return b.file }

// onFill sets what happens at the start of each Fill.
func (b *lazyBlob) onFill(f func(ctx context.Context, off, n int64) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = f
}

func (b *lazyBlob) Fill(ctx context.Context, off, n int64) error {
	b.calls.Add(1)
	b.mu.Lock()
	before := b.before
	b.mu.Unlock()
	if before != nil {
		if err := before(ctx, off, n); err != nil {
			return err
		}
	}
	if off < 0 || off+n > b.Size() {
		return fmt.Errorf("fill %d bytes at %d of %d: %w", n, off, b.Size(), blockfmt.ErrCorrupt)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := off / blockfmt.PageSize; p*blockfmt.PageSize < off+n; p++ {
		if b.filled[p] {
			continue
		}
		start, end := p*blockfmt.PageSize, min((p+1)*blockfmt.PageSize, b.Size())
		if _, err := b.file.WriteAt(b.data[start:end], start); err != nil {
			return err
		}
		b.filled[p] = true
		b.fills.Add(1)
	}
	return nil
}
