package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// diary is a slow Source that notes the order in which blocks are asked for, and how many at a time.
type diary struct {
	slow
	mu       sync.Mutex
	order    []int
	now, max int
}

func (d *diary) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	d.mu.Lock()
	d.order = append(d.order, ref.Number)
	d.now++
	d.max = max(d.max, d.now)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.now--
		d.mu.Unlock()
	}()
	return d.slow.Block(ctx, ref)
}

// TestLimitedDemandFirst: demand reads overtake what waits in the background, and find a slot free.
func TestLimitedDemandFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 20<<10, 1<<10)
		log := &diary{slow: slow{blob, time.Second}}
		src := fetch.Limited(log, 4)
		var wg sync.WaitGroup
		read := func(ctx context.Context, i int) {
			wg.Go(func() {
				if _, err := src.Block(ctx, blob.Index.Ref(i)); err != nil {
					t.Errorf("block %d: %v", i, err)
				}
			})
			synctest.Wait()
		}
		for i := range 6 {
			read(blockfmt.Background(t.Context()), i)
		}
		for i := 10; i < 13; i++ {
			read(t.Context(), i)
		}
		wg.Wait()
		if want := []int{0, 1, 2, 10, 11, 12, 3, 4, 5}; !slices.Equal(log.order[:4], want[:4]) || !sameSet(log.order[4:7], []int{11, 12, 3}) {
			t.Errorf("order %v, want about %v", log.order, want)
		}
		if log.max != 4 {
			t.Errorf("%d at a time, want 4", log.max)
		}
	})
}

func sameSet(a, b []int) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// TestLimitedCancel: readers who go while they wait neither keep nor lose a slot.
func TestLimitedCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 20<<10, 1<<10)
		src := fetch.Limited(slow{blob, time.Second}, 2)
		var wg sync.WaitGroup
		for i := range 200 {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = blockfmt.Background(ctx)
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(i)*37*time.Millisecond)
				defer cancel()
				if _, err := src.Block(ctx, blob.Index.Ref(i%20)); err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		start := time.Now()
		for range 2 {
			wg.Go(func() { _, _ = src.Block(t.Context(), blob.Index.Ref(0)) })
		}
		wg.Wait()
		if d := time.Since(start); d != time.Second {
			t.Errorf("two reads took %v: a slot is lost", d)
		}
	})
}

// TestPromotion: a demand read of a block that waits in the background takes it along.
func TestPromotion(t *testing.T) {
	for name, ask := range map[string]func(src *fetch.Coalescer, blob *blocktest.Blob) error{
		"by a read": func(src *fetch.Coalescer, blob *blocktest.Blob) error {
			_, err := src.Block(context.Background(), blob.Index.Ref(9))
			return err
		},
		"by Promote": func(src *fetch.Coalescer, blob *blocktest.Blob) error {
			d := fetch.Deadline(src, time.Minute)
			d.(interface{ Promote(blockfmt.Ref) }).Promote(blob.Index.Ref(9))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				blob := blocktest.NewBlob(1, 20<<10, 1<<10)
				log := &diary{slow: slow{blob, time.Second}}
				src := closing(t, fetch.Coalesced(fetch.Limited(log, 2)))
				var wg sync.WaitGroup
				background := blockfmt.Background(t.Context())
				for i := range 10 {
					wg.Go(func() { _, _ = src.Block(background, blob.Index.Ref(i)) })
					synctest.Wait()
				}
				if err := ask(src, blob); err != nil {
					t.Error(err)
				}
				wg.Wait()
				if want := []int{0, 9}; !slices.Equal(log.order[:2], want) {
					t.Errorf("order %v, want %v first", log.order, want)
				}
			})
		})
	}
}

func TestPrefetcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 20<<10, 1<<10)
		log := &diary{slow: slow{blob, time.Second}}
		order := blob.Refs()
		slices.Reverse(order)
		p := fetch.Prefetcher{Order: order, Workers: 3, Fetch: func(ctx context.Context, ref blockfmt.Ref) error {
			_, err := log.Block(ctx, ref)
			if ref.Number%3 == 0 { // single failures do not end it
				err = errors.New("failed")
			}
			return err
		}}
		if err := p.Run(t.Context()); err != nil {
			t.Error(err)
		}
		if len(log.order) != 20 || log.max != 3 || log.order[0] < 17 || log.order[19] > 2 {
			t.Errorf("order %v, %d at a time", log.order, log.max)
		}
	})
}

func TestPrefetcherGivesUp(t *testing.T) {
	blob := blocktest.NewBlob(1, 20<<10, 1<<10)
	count := &blocktest.Counting{Next: blocktest.Always(blob, blocktest.Denied)}
	p := fetch.Prefetcher{Order: blob.Refs(), Workers: 2, Fetch: func(ctx context.Context, ref blockfmt.Ref) error {
		_, err := count.Block(ctx, ref)
		return err
	}}
	if err := p.Run(t.Context()); !errors.Is(err, blockfmt.ErrDenied) || count.Total() > 5 {
		t.Errorf("after %d calls: %v", count.Total(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// recorder collects what a Readahead prefetches.
type recorder struct {
	mu  sync.Mutex
	got []int
	err error
}

func (r *recorder) prefetch(_ context.Context, block int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, block)
	return r.err
}

func (r *recorder) take() []int {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return slices.Sorted(slices.Values(got))
}

func TestReadahead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		r := closing(t, fetch.NewReadahead(fetch.ReadaheadConfig{Blocks: 60, Prefetch: rec.prefetch}))
		for _, step := range []struct {
			touch int
			want  []int
		}{
			{50, nil},          // one block is no sequence
			{10, nil},          // nor is another elsewhere
			{11, ints(12, 16)}, // but two are
			{12, nil},          // still far enough ahead
			{13, ints(16, 22)}, // twice as far
			{51, ints(52, 56)}, // the other reader
			{30, nil},          // random
			{14, nil},          //
			{16, nil},          // a block is skipped
			{15, nil},          // and comes late
			{17, ints(22, 34)}, // twice as far again
			{53, ints(56, 60)}, // the end of the blob
			{54, nil},          //
			{59, nil},          //
			{58, nil},          // backwards
		} {
			r.Touched(step.touch)
			if got := rec.take(); !slices.Equal(got, step.want) {
				t.Errorf("block %d: prefetched %v, want %v", step.touch, got, step.want)
			}
		}
	})
}

func ints(from, end int) (list []int) {
	for i := from; i < end; i++ {
		list = append(list, i)
	}
	return list
}

// TestReadaheadWholeBlob: a sequential reader finds every block but the first ones prefetched, each once.
func TestReadaheadWholeBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		r := closing(t, fetch.NewReadahead(fetch.ReadaheadConfig{Blocks: 1000, Prefetch: rec.prefetch}))
		done := map[int]int{}
		for b := range 1000 {
			if b > 1 && done[b] != 1 {
				t.Fatalf("block %d was prefetched %d times before it is demanded", b, done[b])
			}
			r.Touched(b)
			for _, p := range rec.take() {
				if done[p]++; p > b+16 {
					t.Fatalf("at block %d, block %d is prefetched", b, p)
				}
			}
		}
	})
}

func TestReadaheadFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{err: fmt.Errorf("no: %w", blockfmt.ErrDenied)}
		r := closing(t, fetch.NewReadahead(fetch.ReadaheadConfig{Blocks: 1000, Workers: 1, Min: 16, Prefetch: rec.prefetch}))
		r.Touched(0)
		r.Touched(1)
		if got := rec.take(); len(got) != 1 {
			t.Errorf("prefetched %v after a failure, want the first only", got)
		}
	})
}
