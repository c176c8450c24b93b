package fetch_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// closing closes c when the test ends.
func closing[T interface{ Close() error }](t *testing.T, c T) T {
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func TestConformance(t *testing.T) {
	for name, decorate := range map[string]func(t *testing.T, src blockfmt.Source) blockfmt.Source{
		"verified":  func(_ *testing.T, src blockfmt.Source) blockfmt.Source { return fetch.Verified(src) },
		"coalesced": func(t *testing.T, src blockfmt.Source) blockfmt.Source { return closing(t, fetch.Coalesced(src)) },
		"cached": func(_ *testing.T, src blockfmt.Source) blockfmt.Source {
			return fetch.Cached(new(blocktest.Memory), src)
		},
		"fallback": func(_ *testing.T, src blockfmt.Source) blockfmt.Source {
			return fetch.Fallback(blocktest.Always(src, blocktest.Denied), src)
		},
		"limited":  func(_ *testing.T, src blockfmt.Source) blockfmt.Source { return fetch.Limited(src, 2) },
		"deadline": func(_ *testing.T, src blockfmt.Source) blockfmt.Source { return fetch.Deadline(src, time.Minute) },
		"retry":    func(_ *testing.T, src blockfmt.Source) blockfmt.Source { return fetch.Retry(src, fetch.RetryConfig{}) },
		"all": func(t *testing.T, src blockfmt.Source) blockfmt.Source {
			return fetch.Deadline(closing(t, fetch.Coalesced(fetch.Cached(new(blocktest.Memory), fetch.Fallback(
				fetch.Retry(fetch.Verified(fetch.Limited(new(blocktest.Memory), 4)), fetch.RetryConfig{}), src)))), time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Source(t, func(t *testing.T, blob *blocktest.Blob) blockfmt.Source { return decorate(t, blob) })
		})
	}
}

// TestFaultsThroughStack: whatever the registry does, a reader gets right bytes or the error's kind within the bound.
func TestFaultsThroughStack(t *testing.T) {
	for _, fault := range blocktest.Faults() {
		t.Run(fault.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				blob := blocktest.NewBlob(1, 100<<10, 64<<10)
				bad := &blocktest.Counting{Next: blocktest.Always(blob, fault)}
				store := new(blocktest.Memory)
				src := fetch.Deadline(closing(t, fetch.Coalesced(fetch.Cached(store, fetch.Retry(fetch.Verified(bad), fetch.RetryConfig{})))), 30*time.Second)
				want, attempts := fault.Kind(), 1
				switch fault {
				case blocktest.Stall:
					want, attempts = blockfmt.ErrTransient, 3 // of 10 s
				case blocktest.Transient:
					attempts = 4
				}
				start := time.Now()
				if _, err := src.Block(t.Context(), blob.Index.Ref(0)); !errors.Is(err, want) {
					t.Errorf("error %v, want %v", err, want)
				}
				if d := time.Since(start); d > 30*time.Second {
					t.Errorf("took %v", d)
				}
				synctest.Wait()
				if n := bad.Total(); n != attempts {
					t.Errorf("%d attempts, want %d", n, attempts)
				}
				if store.Len() != 0 {
					t.Error("something was kept")
				}
			})
		})
	}
}

// TestBriefFaults: those that pass are outlived.
func TestBriefFaults(t *testing.T) {
	for _, fault := range []blocktest.Fault{blocktest.Transient, blocktest.Stall} {
		t.Run(fault.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				blob := blocktest.NewBlob(1, 100<<10, 64<<10)
				src := fetch.Retry(fetch.Verified(blocktest.FirstCalls(blob, 2, fault)), fetch.RetryConfig{})
				if _, err := src.Block(t.Context(), blob.Index.Ref(0)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestRetryHeedsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 64<<10, 64<<10)
		src := fetch.Retry(blocktest.Always(blob, blocktest.Transient), fetch.RetryConfig{Attempts: 1000})
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := src.Block(ctx, blob.Index.Ref(0)); !errors.Is(err, blockfmt.ErrTransient) || time.Since(start) != 7*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// TestOneFetchForMany: exactly one remote fetch for 64 concurrent reads of a block, and none for later ones.
func TestOneFetchForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(2, 100<<10, 64<<10)
		remote := &blocktest.Counting{Next: slow{blob, time.Second}}
		src := closing(t, fetch.Coalesced(fetch.Cached(new(blocktest.Memory), remote)))
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				got, err := src.Block(t.Context(), blob.Index.Ref(0))
				if err != nil || blockfmt.Verify(blob.Index.Ref(0), got) != nil {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
		if _, err := src.Block(t.Context(), blob.Index.Ref(0)); err != nil {
			t.Error(err)
		}
		if n := remote.Total(); n != 1 {
			t.Errorf("%d remote fetches, want 1", n)
		}
	})
}

// slow is a Source that takes a while.
type slow struct {
	blockfmt.Source
	time.Duration
}

func (s slow) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	select {
	case <-time.After(s.Duration):
		return s.Source.Block(ctx, ref)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestCoalescedCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(3, 100<<10, 64<<10)
		ref := blob.Index.Ref(0)
		remote := &blocktest.Counting{Next: slow{blob, 10 * time.Second}}
		src := closing(t, fetch.Coalesced(remote))
		read := func(patience time.Duration, want error) func() {
			return func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				if _, err := src.Block(ctx, ref); !errors.Is(err, want) || time.Since(start) > patience {
					t.Errorf("reader with %v of patience, after %v: %v, want %v", patience, time.Since(start), err, want)
				}
			}
		}
		var wg sync.WaitGroup
		wg.Go(read(time.Second, context.DeadlineExceeded)) // the one who begins it leaves first
		synctest.Wait()
		wg.Go(read(5*time.Second, context.DeadlineExceeded))
		wg.Go(read(time.Minute, nil))
		wg.Wait()
		if n := remote.Total(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
		read(time.Second, context.DeadlineExceeded)() // all leave
		read(time.Minute, nil)()                      // does not join the canceled one
		if n := remote.Total(); n != 3 {
			t.Errorf("%d fetches, want 3", n)
		}
	})
}

// TestDeadlineOfDeafSource: the bound holds even if something below does not heed its context.
func TestDeadlineOfDeafSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(4, 64<<10, 64<<10)
		deaf := blockfmt.SourceFunc(func(context.Context, blockfmt.Ref) ([]byte, error) {
			<-time.After(time.Hour)
			return nil, blockfmt.ErrTransient
		})
		src := fetch.Deadline(closing(t, fetch.Coalesced(deaf)), 30*time.Second)
		start := time.Now()
		if _, err := src.Block(t.Context(), blob.Index.Ref(0)); !errors.Is(err, blockfmt.ErrTransient) || time.Since(start) != 30*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestCoalescedClosed(t *testing.T) {
	blob := blocktest.NewBlob(5, 64<<10, 64<<10)
	src := fetch.Coalesced(blob)
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := src.Block(t.Context(), blob.Index.Ref(0)); !errors.Is(err, blockfmt.ErrTransient) {
		t.Errorf("error %v", err)
	}
}

func TestFallbackKinds(t *testing.T) {
	blob := blocktest.NewBlob(6, 64<<10, 64<<10)
	always := func(f blocktest.Fault) blockfmt.Source { return fetch.Verified(blocktest.Always(blob, f)) }
	for _, test := range []struct {
		sources []blockfmt.Source
		want    error
	}{
		{nil, blockfmt.ErrNotFound},
		{[]blockfmt.Source{always(blocktest.NotFound), always(blocktest.Denied)}, blockfmt.ErrDenied},
		{[]blockfmt.Source{always(blocktest.Transient), always(blocktest.NotFound)}, blockfmt.ErrTransient},
		{[]blockfmt.Source{always(blocktest.WrongBytes), always(blocktest.Transient)}, blockfmt.ErrTransient},
		{[]blockfmt.Source{always(blocktest.WrongBytes), always(blocktest.TooShort), blob}, nil},
	} {
		_, err := fetch.Fallback(test.sources...).Block(t.Context(), blob.Index.Ref(0))
		if !errors.Is(err, test.want) {
			t.Errorf("error %v, want %v", err, test.want)
		}
		for _, kind := range []error{blockfmt.ErrCorrupt, blockfmt.ErrTransient, blockfmt.ErrDenied, blockfmt.ErrNotFound} {
			if kind != test.want && errors.Is(err, kind) {
				t.Errorf("error %v is %v too: what to do about it is not clear", err, kind)
			}
		}
	}
}
