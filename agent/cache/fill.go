package cache

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"

	"github.com/xylem-project/xylem/blockfmt"
)

// fill is one block on its way into the file. All who want the block at the same time share it.
type fill struct {
	block      int
	by         *File // who began it
	background bool  // begun by Prefetch, and nobody demanded it since; under blob.mu
	cancel     context.CancelFunc
	waiters    int           // under blob.mu
	done       chan struct{} // closed when err is set
	err        error
}

// promoter is what a Source can do when a block is demanded that it fetches in the background (fetch.Coalescer).
type promoter interface{ Promote(ref blockfmt.Ref) }

// join returns the fill of block i, which it begins if there is none.
func (b *blob) join(ctx context.Context, f *File, i int, background bool) *fill {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := b.fills[i]; k != nil {
		k.waiters++
		if k.background && !background {
			k.background = false
			if p, ok := k.by.source.(promoter); ok {
				p.Promote(b.ix.Ref(i))
			}
		}
		return k
	}
	k := &fill{block: i, by: f, background: background, waiters: 1, done: make(chan struct{})}
	if b.stopped {
		k.err = fmt.Errorf("%v: %w", b.ix.Ref(i), os.ErrClosed)
		close(k.done)
		return k
	}
	var shared context.Context
	shared, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	b.fills[i] = k
	b.wg.Go(func() {
		err := b.fetch(shared, f, i)
		canceled := shared.Err() != nil
		k.cancel()
		b.forgetFill(k)
		if err != nil && !canceled {
			b.logFailure(k, err)
		}
		k.err = err
		close(k.done)
		if err == nil {
			b.maybeFinish()
		}
	})
	return k
}

// logFailure writes the one line for a block that somebody demanded. That one could not be prefetched will be seen if it
// is demanded.
func (b *blob) logFailure(k *fill, err error) {
	b.mu.Lock()
	level := slog.LevelWarn
	if k.background {
		level = slog.LevelDebug
	}
	b.mu.Unlock()
	b.cache.cfg.Logger.Log(context.Background(), level, "block cannot be read", "blob", b.ix.Blob(), "block", k.block, "error", err)
}

// leave takes a waiter away; without any, the fill is canceled and nobody joins it any more.
func (b *blob) leave(k *fill) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k.waiters--; k.waiters == 0 && b.fills[k.block] == k {
		k.cancel()
		delete(b.fills, k.block)
	}
}

func (b *blob) forgetFill(k *fill) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fills[k.block] == k {
		delete(b.fills, k.block)
	}
}

// fetch makes block i valid: from the disk if the map says that it is there and its checksum agrees, else from f's Source.
func (b *blob) fetch(ctx context.Context, f *File, i int) error {
	if b.good.get(i) {
		return nil
	}
	if b.have.get(i) {
		intact, err := b.check(i)
		if intact {
			b.good.set(i)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%v: %w", b.ix.Ref(i), err)
		}
	}
	ref := b.ix.Ref(i)
	stored, err := f.source.Block(ctx, ref)
	if err != nil {
		return err
	}
	if !blockfmt.IsVerified(f.source) {
		if err := blockfmt.Verify(ref, stored); err != nil {
			return err
		}
	}
	return b.cache.decoder.with(ref.RawLength, func(buf []byte) error {
		if ctx.Err() != nil { // nobody waits any more
			return ctx.Err()
		}
		raw, err := blockfmt.Decode(ref, stored, buf)
		if err != nil {
			return err
		}
		if err := b.keep(i, raw); err != nil {
			return fmt.Errorf("%v: write to cache: %w", ref, err)
		}
		return nil
	})
}

func putSum(b []byte, sum uint32) { binary.LittleEndian.PutUint32(b, sum) }
func getSum(b []byte) uint32      { return binary.LittleEndian.Uint32(b) }
