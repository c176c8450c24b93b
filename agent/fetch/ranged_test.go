package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// remote is a RangeReader over a blob on virtual time: each request takes a while to answer, and then has a rate.
type remote struct {
	blob     *blocktest.Blob
	latency  time.Duration
	rate     int64                   // bytes a second; 0: at once
	fault    func(request int) error // nil: none. An error comes after half of the bytes
	mu       sync.Mutex
	asked    []string
	now, max int
	closed   int
}

func (r *remote) Range(ctx context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error) {
	if blob != r.blob.Index.Blob() || off+n > int64(len(r.blob.Stored)) {
		return nil, fmt.Errorf("no such range: %w", blockfmt.ErrNotFound)
	}
	r.mu.Lock()
	first := slices.IndexFunc(r.blob.Refs(), func(ref blockfmt.Ref) bool { return ref.Offset == off })
	last := slices.IndexFunc(r.blob.Refs(), func(ref blockfmt.Ref) bool { return ref.Offset+ref.Length == off+n })
	r.asked = append(r.asked, fmt.Sprintf("%d-%d", first, last))
	request := len(r.asked) - 1
	r.now++
	r.max = max(r.max, r.now)
	r.mu.Unlock()
	b := &remoteBody{remote: r, ctx: ctx, left: r.blob.Stored[off : off+n], failAt: -1}
	if r.fault != nil {
		if b.err = r.fault(request); b.err != nil {
			b.failAt = int(n / 2)
		}
	}
	select {
	case <-time.After(r.latency):
		return b, nil
	case <-ctx.Done():
		_ = b.Close()
		return nil, ctx.Err()
	}
}

// log returns the requests so far, the most at a time, and how many bodies were closed.
func (r *remote) log() (asked []string, most, closed int) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked), r.max, r.closed
}

type remoteBody struct {
	remote *remote
	ctx    context.Context
	left   []byte
	failAt int
	err    error
}

func (b *remoteBody) Read(p []byte) (int, error) {
	if b.failAt == 0 {
		return 0, b.err
	}
	if len(b.left) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(b.left), 4<<10)
	if b.failAt > 0 {
		n = min(n, b.failAt)
		b.failAt -= n
	}
	if b.remote.rate > 0 {
		select {
		case <-time.After(time.Duration(int64(n) * int64(time.Second) / b.remote.rate)):
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	copy(p, b.left[:n])
	b.left = b.left[n:]
	return n, nil
}

func (b *remoteBody) Close() error {
	b.remote.mu.Lock()
	defer b.remote.mu.Unlock()
	b.remote.now--
	b.remote.closed++
	return nil
}

// ask reads blocks at the same time and returns when each arrived, after the start.
func ask(ctx context.Context, t *testing.T, src blockfmt.Source, blob *blocktest.Blob, blocks ...int) map[int]time.Duration {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	start, took := time.Now(), map[int]time.Duration{}
	for _, i := range blocks {
		wg.Go(func() {
			got, err := src.Block(ctx, blob.Index.Ref(i))
			if err != nil || !bytes.Equal(got, blob.Bytes(blob.Index.Ref(i))) {
				t.Errorf("block %d: %d bytes, %v", i, len(got), err)
			}
			mu.Lock()
			defer mu.Unlock()
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	return took
}

func TestRangedConformance(t *testing.T) {
	blocktest.Source(t, func(t *testing.T, blob *blocktest.Blob) blockfmt.Source {
		return closing(t, fetch.Ranged(&remote{blob: blob}, fetch.RangedConfig{}))
	})
}

func TestRangedMerges(t *testing.T) {
	for name, test := range map[string]struct {
		cfg    fetch.RangedConfig
		blocks []int
		want   []string
	}{
		"one":             {fetch.RangedConfig{}, []int{3}, []string{"3-3"}},
		"neighbours":      {fetch.RangedConfig{}, []int{5, 3, 4, 6}, []string{"3-6"}},
		"gaps":            {fetch.RangedConfig{}, []int{1, 2, 4, 6, 7}, []string{"1-2", "4-4", "6-7"}},
		"the same":        {fetch.RangedConfig{}, []int{3, 4, 3, 4}, []string{"3-4"}},
		"split when free": {fetch.RangedConfig{MinBytes: 140 << 10, Requests: 8}, []int{0, 1, 2, 3, 4, 5, 6, 7}, []string{"0-3", "4-7"}},
		"bounded":         {fetch.RangedConfig{MaxBytes: 150 << 10}, []int{0, 1, 2, 3, 4, 5, 6, 7}, []string{"0-3", "4-7"}},
		"big blocks":      {fetch.RangedConfig{MaxBytes: 1}, []int{0, 1}, []string{"0-0", "1-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &remote{blob: blocktest.NewBlob(1, 640<<10, 64<<10), latency: time.Second}
				src := closing(t, fetch.Ranged(r, test.cfg))
				ask(t.Context(), t, src, r.blob, test.blocks...)
				asked, _, _ := r.log()
				if got := slices.Sorted(slices.Values(asked)); !slices.Equal(got, test.want) {
					t.Errorf("asked for %v, want %v", got, test.want)
				}
			})
		})
	}
}

// TestRangedStreams: a block is given out when its last byte is there, not the request's.
func TestRangedStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &remote{blob: blocktest.NewBlob(1, 640<<10, 64<<10), latency: time.Second, rate: 33 << 10}
		src := closing(t, fetch.Ranged(r, fetch.RangedConfig{}))
		took := ask(t.Context(), t, src, r.blob, 0, 1, 2, 3, 4, 5)
		for i, d := range took {
			if want := time.Duration(i+2) * time.Second; d.Round(time.Second) != want {
				t.Errorf("block %d after %v, want about %v", i, d, want)
			}
		}
		if asked, _, _ := r.log(); len(asked) != 1 {
			t.Errorf("requests %v, want one", asked)
		}
	})
}

// TestRangedGathersWhileBusy: what is wanted while all requests are busy goes out in one.
func TestRangedGathersWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &remote{blob: blocktest.NewBlob(1, 640<<10, 64<<10), latency: time.Second}
		src := closing(t, fetch.Ranged(r, fetch.RangedConfig{Requests: 1}))
		var wg sync.WaitGroup
		for _, i := range []int{0, 7, 5, 6, 9} {
			wg.Go(func() { ask(t.Context(), t, src, r.blob, i) })
			<-time.After(10 * time.Millisecond)
		}
		wg.Wait()
		asked, most, _ := r.log()
		if want := []string{"0-0", "5-7", "9-9"}; !slices.Equal(asked, want) || most != 1 {
			t.Errorf("asked for %v, %d at a time; want %v", asked, most, want)
		}
	})
}

// TestRangedDemandFirst: the background leaves a request free, which demand then has at once.
func TestRangedDemandFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &remote{blob: blocktest.NewBlob(1, 1280<<10, 64<<10), latency: time.Second}
		src := closing(t, fetch.Ranged(r, fetch.RangedConfig{Requests: 2, MaxBytes: 1}))
		var wg sync.WaitGroup
		wg.Go(func() { ask(blockfmt.Background(t.Context()), t, src, r.blob, 0, 2, 4, 6, 8) })
		<-time.After(100 * time.Millisecond)
		for i, d := range ask(t.Context(), t, src, r.blob, 15) {
			if d > 1100*time.Millisecond {
				t.Errorf("demanded block %d took %v", i, d)
			}
		}
		wg.Wait()
		if _, most, _ := r.log(); most != 2 {
			t.Errorf("%d requests at a time, want 2", most)
		}
	})
}

// TestRangedFaults: a request that fails midway costs the blocks that had not arrived, with the error's kind; another
// attempt gets them.
func TestRangedFaults(t *testing.T) {
	for name, fault := range map[string]error{"ends early": io.EOF, "breaks": fmt.Errorf("reset: %w", blockfmt.ErrTransient)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &remote{blob: blocktest.NewBlob(1, 640<<10, 64<<10), fault: func(request int) error {
					if request == 0 {
						return fault
					}
					return nil
				}}
				src := fetch.Retry(closing(t, fetch.Ranged(r, fetch.RangedConfig{Window: time.Second})), fetch.RetryConfig{})
				ask(t.Context(), t, src, r.blob, 0, 1, 2, 3, 4, 5)
				asked, _, closed := r.log()
				if want := []string{"0-5", "3-5"}; !slices.Equal(asked, want) || closed != 2 {
					t.Errorf("asked for %v, %d bodies closed; want %v", asked, closed, want)
				}
			})
		})
	}
}

// TestRangedCancel: a request is canceled when the last of its readers has gone.
func TestRangedCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &remote{blob: blocktest.NewBlob(1, 640<<10, 64<<10), latency: time.Hour}
		src := closing(t, fetch.Ranged(r, fetch.RangedConfig{Requests: 1}))
		var wg sync.WaitGroup
		for i := range 4 { // 0 and 1 in a request, 2 and 3 pending
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*time.Minute)
			defer cancel()
			wg.Go(func() {
				if _, err := src.Block(ctx, r.blob.Index.Ref(i+i/2*3)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("reader %d: %v", i, err)
				}
			})
			if i == 1 {
				<-time.After(time.Second)
			}
		}
		<-time.After(90 * time.Second)
		if asked, _, closed := r.log(); len(asked) != 1 || closed != 0 {
			t.Errorf("while one waits: asked %v, %d closed", asked, closed)
		}
		<-time.After(40 * time.Second)
		if asked, _, closed := r.log(); len(asked) != 2 || closed != 1 {
			t.Errorf("when none waits: asked %v, %d closed", asked, closed)
		}
		wg.Wait()
	})
}

func TestRangedClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &remote{blob: blocktest.NewBlob(1, 640<<10, 64<<10), latency: time.Hour}
		src := fetch.Ranged(r, fetch.RangedConfig{Requests: 1})
		errs := make(chan error, 2)
		for i := range 2 {
			go func() {
				_, err := src.Block(t.Context(), r.blob.Index.Ref(5*i))
				errs <- err
			}()
			<-time.After(time.Second)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-errs; err == nil {
				t.Error("a block from a closed source")
			}
		}
		if _, err := src.Block(t.Context(), r.blob.Index.Ref(0)); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestRangedAbsurdRef(t *testing.T) {
	src := closing(t, fetch.Ranged(&remote{blob: blocktest.NewBlob(1, 64<<10, 64<<10)}, fetch.RangedConfig{}))
	for _, n := range []int64{-1, 0, blockfmt.MaxBlockSize + 1} {
		if _, err := src.Block(t.Context(), blockfmt.Ref{Length: n}); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("block of %d bytes: %v", n, err)
		}
	}
}
