package cache_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func TestFillRanges(t *testing.T) {
	blob := blocktest.NewBlob(1, 1<<20+123, 64<<10)
	count := &blocktest.Counting{Next: blob}
	c := open(t, cache.Config{Fetches: 3})
	f := openFile(t, c, blob, count, nil)
	checkRange(t, f, blob, 100, 1)
	checkRange(t, f, blob, 64<<10-1, 2)
	checkRange(t, f, blob, len(blob.Raw)-1, 1000)
	if n := count.Total(); n != 3 {
		t.Errorf("%d blocks fetched, want 3", n)
	}
	checkRange(t, f, blob, 0, len(blob.Raw))
	if n := count.Total(); n != blob.Index.Len() {
		t.Errorf("%d blocks fetched, want %d", n, blob.Index.Len())
	}
	for _, r := range [][2]int64{{-1, 10}, {0, 0}, {5, -5}, {f.Size(), 1}, {1 << 60, 1 << 62}} {
		if err := f.Fill(t.Context(), r[0], r[1]); err != nil {
			t.Errorf("fill %d bytes at %d, where nothing is: %v", r[1], r[0], err)
		}
	}
}

// TestFillConcurrently reads a blob by many readers at random places: every block is fetched once, all bytes are right.
func TestFillConcurrently(t *testing.T) {
	blob := blocktest.NewBlob(2, 2<<20, 64<<10)
	count := &blocktest.Counting{Next: blob}
	c := open(t, cache.Config{})
	f := openFile(t, c, blob, count, nil)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() { checkRange(t, f, blob, i*79190%len(blob.Raw), 200<<10) })
	}
	wg.Wait()
	for _, ref := range blob.Refs() {
		if n := count.Of(ref); n != 1 {
			t.Errorf("%v fetched %d times", ref, n)
		}
	}
}

// gate is a Source that holds each block until it is opened.
type gate struct {
	next     blockfmt.Source
	open     chan struct{}
	canceled chan struct{} // gets one for each read that is canceled
}

func newGate(next blockfmt.Source) *gate {
	return &gate{next, make(chan struct{}), make(chan struct{}, 100)}
}

func (g *gate) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	select {
	case <-g.open:
		return g.next.Block(ctx, ref)
	case <-ctx.Done():
		g.canceled <- struct{}{}
		return nil, ctx.Err()
	}
}

// TestFillCanceledWaiter: one waiter's end concerns neither the others nor, as long as they wait, the fetch.
func TestFillCanceledWaiter(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(3, 100<<10, 64<<10)
		count := &blocktest.Counting{Next: blob}
		g := newGate(count)
		c := open(t, cache.Config{Dir: dir})
		f := openFile(t, c, blob, g, nil)
		first, cancel := context.WithCancel(t.Context())
		results := make(chan error, 2)
		go func() { results <- f.Fill(first, 0, 1) }()
		synctest.Wait()
		go func() { results <- f.Fill(t.Context(), 0, 1) }()
		synctest.Wait()
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("canceled waiter: %v", err)
		}
		close(g.open)
		if err := <-results; err != nil {
			t.Errorf("other waiter: %v", err)
		}
		if n := count.Total(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

// TestFillAllCanceled: when nobody waits any more the fetch is canceled, and the next one starts anew.
func TestFillAllCanceled(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(4, 100<<10, 64<<10)
		g := newGate(blob)
		logs := &logBook{}
		c := open(t, cache.Config{Dir: dir, Logger: logs.logger()})
		f := openFile(t, c, blob, g, nil)
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error)
		go func() { result <- f.Fill(ctx, 0, f.Size()) }()
		synctest.Wait()
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		for range blob.Index.Len() {
			<-g.canceled
		}
		close(g.open)
		checkRange(t, f, blob, 0, len(blob.Raw))
		if w := logs.lines(); len(w) != 0 {
			t.Errorf("a canceled read is logged: %v", w)
		}
	})
}

// TestFillFaults: whatever the Source does, Fill fails with the kind, logs one line, leaves nothing that is wrong, and
// works again when the Source does.
func TestFillFaults(t *testing.T) {
	blob := blocktest.NewBlob(5, 100<<10, 64<<10)
	for _, fault := range blocktest.Faults() {
		if fault == blocktest.Stall { // up to the Source stack
			continue
		}
		t.Run(fault.String(), func(t *testing.T) {
			logs := &logBook{}
			c := open(t, cache.Config{Logger: logs.logger()})
			f := openFile(t, c, blob, blocktest.FirstCalls(blob, 2, fault), nil)
			if err := f.Prefetch(t.Context(), 0); !errors.Is(err, fault.Kind()) {
				t.Errorf("prefetch: error %v, want %v", err, fault.Kind())
			}
			if err := f.Fill(t.Context(), 0, 1); !errors.Is(err, fault.Kind()) {
				t.Errorf("error %v, want %v", err, fault.Kind())
			}
			if w := logs.lines(); len(w) != 1 || !strings.Contains(w[0], blob.Index.Blob().String()) {
				t.Errorf("logged %q, want one line that names the blob", w)
			}
			checkRange(t, f, blob, 0, len(blob.Raw))
		})
	}
}

// TestOtherSource: a reader whose Source has the block does not suffer from one whose Source has not.
func TestOtherSource(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(6, 64<<10, 64<<10)
		bad := newGate(blocktest.Always(blob, blocktest.Denied))
		c := open(t, cache.Config{Dir: dir})
		f, g := openFile(t, c, blob, bad, nil), openFile(t, c, blob, blob, nil)
		results := make(chan error, 2)
		go func() { results <- f.Fill(t.Context(), 0, 1) }()
		synctest.Wait()
		go func() { results <- g.Fill(t.Context(), 0, 1) }()
		synctest.Wait()
		close(bad.open)
		a, b := <-results, <-results
		if a == nil {
			a, b = b, a
		}
		if b != nil || !(a == nil || errors.Is(a, blockfmt.ErrDenied)) {
			t.Errorf("errors %v and %v, want the second reader to succeed", a, b)
		}
	})
}

func TestTouched(t *testing.T) {
	blob := blocktest.NewBlob(7, 640<<10, 64<<10)
	c := open(t, cache.Config{})
	var got []int
	f := openFile(t, c, blob, blob, func(block int) { got = append(got, block) })
	for _, block := range []int{5, 6, 5} {
		if err := f.Prefetch(t.Context(), block); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []int{300, 5 * 64, 0, 300, 64} { // KiB; 5*64 was prefetched
		checkRange(t, f, blob, at<<10, 10)
	}
	checkRange(t, f, blob, 0, 3*64<<10)
	if want := []int{4, 5, 0, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("touched %v, want %v", got, want)
	}
	for _, block := range []int{-1, blob.Index.Len()} {
		if err := f.Prefetch(t.Context(), block); err != nil {
			t.Errorf("prefetch of block %d, which is none: %v", block, err)
		}
	}
}

type promotions struct {
	*gate
	got []blockfmt.Ref
}

func (p *promotions) Promote(ref blockfmt.Ref) { p.got = append(p.got, ref) }

func TestDemandPromotesPrefetch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(8, 128<<10, 64<<10)
		src := &promotions{gate: newGate(blob)}
		c := open(t, cache.Config{Dir: dir})
		f := openFile(t, c, blob, src, nil)
		var wg sync.WaitGroup
		wg.Go(func() { _ = f.Prefetch(t.Context(), 1) })
		synctest.Wait()
		for range 2 {
			wg.Go(func() { checkRange(t, f, blob, 100<<10, 1) })
			synctest.Wait()
		}
		if want := []blockfmt.Ref{blob.Index.Ref(1)}; !slices.Equal(src.got, want) {
			t.Errorf("promoted %v, want %v", src.got, want)
		}
		close(src.open)
		wg.Wait()
	})
}

// TestFastPath: a Fill of valid blocks, which each FUSE read begins with, allocates nothing.
func TestFastPath(t *testing.T) {
	blob := blocktest.NewBlob(9, 1<<20, 64<<10)
	c := open(t, cache.Config{})
	f := openFile(t, c, blob, blob, func(int) {})
	checkRange(t, f, blob, 0, len(blob.Raw))
	n := testing.AllocsPerRun(100, func() {
		if err := f.Fill(t.Context(), 100<<10, 512<<10); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFillValid(b *testing.B) {
	blob := blocktest.NewBlob(9, 4<<20, 4<<10) // as many blocks as 512 MiB have
	c, err := cache.Open(cache.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	f, err := c.OpenFile(blob.Index, blob, func(int) {})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Fill(b.Context(), 0, f.Size()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := f.Fill(b.Context(), 1<<20, 4<<10); err != nil {
			b.Fatal(err)
		}
	}
}

func TestClosed(t *testing.T) {
	blob := blocktest.NewBlob(10, 100<<10, 64<<10)
	c := open(t, cache.Config{})
	f, err := c.OpenFile(blob.Index, blob, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := openFile(t, c, blob, blob, nil)
	checkRange(t, f, blob, 0, 1)
	for range 2 { // the second one does nothing
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, off := range []int64{0, 64 << 10} {
		if err := f.Fill(t.Context(), off, 1); !errors.Is(err, os.ErrClosed) {
			t.Errorf("fill after close: %v", err)
		}
	}
	if err := f.Prefetch(t.Context(), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("prefetch after close: %v", err)
	}
	checkRange(t, other, blob, 0, len(blob.Raw))
}

func TestEmptyBlob(t *testing.T) {
	blob := blocktest.NewBlob(11, 0, 64<<10)
	c := open(t, cache.Config{})
	f := openFile(t, c, blob, blob, nil)
	if err := f.Fill(t.Context(), 0, 1); err != nil || f.Size() != 0 {
		t.Errorf("size %d, %v", f.Size(), err)
	}
}
