package fetch_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// sweep fetches the first n blocks of the remote's blob as far as they are no larger than limit, into store.
func sweep(t *testing.T, r *remote, store blockfmt.Store, request int64, n int, limit int64) (added int64, err error) {
	t.Helper()
	s := fetch.NewSweep(fetch.SweepConfig{Reader: r, Store: store, Bytes: request})
	added = s.Add(r.blob.Index, n, limit)
	return added, s.Run(t.Context())
}

func TestSweepFetchesNeighboursInOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := &remote{blob: blocktest.NewBlob(1, 20<<10, 1<<10), latency: time.Millisecond}, &blocktest.Memory{}
		refs := r.blob.Refs()
		for _, i := range []int{0, 4, 9} { // at both ends of what is asked for, where they save a request's bytes, and amid
			if err := store.Put(t.Context(), refs[i], r.blob.Bytes(refs[i])); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := sweep(t, r, store, 1<<30, 10, 1<<30); err != nil {
			t.Fatal(err)
		}
		if asked, _, closed := r.log(); !slices.Equal(asked, []string{"1-8"}) || closed != 1 {
			t.Errorf("asked for %q and closed %d, want one request", asked, closed)
		}
		for i, ref := range refs {
			if store.Has(ref) != (i < 10) {
				t.Errorf("block %d: kept is %v", i, store.Has(ref))
			}
		}
		if _, err := sweep(t, r, store, 1<<30, 10, 1<<30); err != nil {
			t.Fatal(err)
		}
		if asked, _, _ := r.log(); len(asked) != 1 {
			t.Errorf("asked again for what was there: %q", asked)
		}
	})
}

func TestSweepKeepsToItsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := &remote{blob: blocktest.NewBlob(1, 20<<10, 1<<10)}, &blocktest.Memory{}
		refs := r.blob.Refs()
		two, seven := refs[1].Offset+refs[1].Length, refs[6].Offset+refs[6].Length
		added, err := sweep(t, r, store, two, 100, seven)
		if err != nil || added != seven {
			t.Errorf("added %d bytes of %d: %v", added, seven, err)
		}
		if asked, _, _ := r.log(); len(asked) < 4 || asked[0] != "0-1" || asked[len(asked)-1][2:] != "6" {
			t.Errorf("requests for %q, want up to block 6, none over %d bytes", asked, two)
		}
		if store.Len() != 7 {
			t.Errorf("%d blocks kept, want 7", store.Len())
		}
	})
}

func TestSweepEndsWithTheFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := &remote{blob: blocktest.NewBlob(1, 20<<10, 1<<10), fault: func(int) error { return blockfmt.ErrTransient }}, &blocktest.Memory{}
		if _, err := sweep(t, r, store, 1<<30, 20, 1<<30); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("error %v, want the registry's", err)
		}
		if n := store.Len(); n == 0 || n > 10 {
			t.Errorf("%d blocks kept of the half that came", n)
		}
	})
}

func TestSweepKeepsNoWrongBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := &remote{blob: blocktest.NewBlob(1, 20<<10, 1<<10)}, &blocktest.Memory{}
		r.blob.Stored[r.blob.Refs()[3].Offset] ^= 1
		if _, err := sweep(t, r, store, 1<<30, 20, 1<<30); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("error %v, want corrupt", err)
		}
		if store.Len() != 3 {
			t.Errorf("%d blocks kept, want the 3 before the wrong one", store.Len())
		}
	})
}

func TestSweepWaitsForDemandReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 20<<10, 1<<10)
		release := make(chan struct{})
		gate := fetch.Gated(blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
			<-release
			return blob.Block(ctx, ref)
		}))
		go gate.Block(blockfmt.Background(t.Context()), blob.Index.Ref(0)) // for this one nobody waits
		go gate.Block(t.Context(), blob.Index.Ref(1))                      // for this one somebody does
		synctest.Wait()
		r, store := &remote{blob: blob}, &blocktest.Memory{}
		s := fetch.NewSweep(fetch.SweepConfig{Reader: r, Store: store, Gate: gate})
		s.Add(blob.Index, 20, 1<<30)
		canceled, cancel := context.WithCancel(t.Context())
		gaveUp, done := make(chan error, 1), make(chan error, 1)
		go func() { gaveUp <- s.Run(canceled) }()
		go func() { done <- s.Run(t.Context()) }()
		synctest.Wait()
		if store.Len() != 0 {
			t.Errorf("%d blocks swept while somebody waited for another", store.Len())
		}
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("canceled while it waited: %v", err)
		}
		close(release)
		if err := <-done; err != nil || store.Len() != 18 || store.Has(blob.Index.Ref(0)) || store.Has(blob.Index.Ref(1)) {
			t.Errorf("%d blocks swept afterwards, want all but the two that others had asked for: %v", store.Len(), err)
		}
	})
}

// TestDemandReadsWaitForWhatASweepBrings: what is on its way is not asked for again, though the sweep waits for other demand reads.
func TestDemandReadsWaitForWhatASweepBrings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 20<<10, 1<<10)
		release := make(chan struct{})
		asked := &blocktest.Counting{Next: blob}
		gate := fetch.Gated(blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
			<-release
			return asked.Block(ctx, ref)
		}))
		go gate.Block(t.Context(), blob.Index.Ref(19))
		synctest.Wait()
		r, store := &remote{blob: blob}, &blocktest.Memory{}
		s := fetch.NewSweep(fetch.SweepConfig{Reader: r, Store: store, Gate: gate})
		s.Add(blob.Index, 10, 1<<30)
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		synctest.Wait()
		ref := blob.Index.Ref(5)
		stored, err := gate.Block(t.Context(), ref)
		if err != nil || blockfmt.Verify(ref, stored) != nil {
			t.Errorf("block 5: %v", err)
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := asked.Of(ref); n != 0 {
			t.Errorf("block 5 was asked for %d times beside the sweep", n)
		}
	})
}

// TestDemandReadsLeaveASweepThatBringsNothing: they ask themselves when it stalls, and at once when it fails.
func TestDemandReadsLeaveASweepThatBringsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 20<<10, 1<<10)
		gate := fetch.Gated(blob)
		stall := make(chan struct{})
		r := &remote{blob: blob, fault: func(int) error { <-stall; return blockfmt.ErrTransient }}
		s := fetch.NewSweep(fetch.SweepConfig{Reader: r, Store: &blocktest.Memory{}, Gate: gate})
		s.Add(blob.Index, 20, 1<<30)
		go s.Run(t.Context())
		synctest.Wait()
		late := blob.Index.Ref(19)
		start := time.Now()
		if _, err := gate.Block(t.Context(), late); err != nil || time.Since(start) > time.Second {
			t.Errorf("block 19 after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		time.AfterFunc(100*time.Millisecond, func() { close(stall) })
		if _, err := gate.Block(t.Context(), late); err != nil || time.Since(start) != 100*time.Millisecond {
			t.Errorf("block 19 after %v: %v", time.Since(start), err)
		}
	})
}

// TestOnlyBackgroundReadsWaitForWhatASweepBringsLate: the last block of a long sweep, until somebody needs it.
func TestOnlyBackgroundReadsWaitForWhatASweepBringsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 16<<20, 512<<10)
		asked := &blocktest.Counting{Next: blob}
		gate := fetch.Gated(asked)
		r := &remote{blob: blob, rate: 1 << 20}
		s := fetch.NewSweep(fetch.SweepConfig{Reader: r, Store: &blocktest.Memory{}, Gate: gate})
		s.Add(blob.Index, 32, 1<<30)
		go s.Run(t.Context())
		synctest.Wait()
		needed, idle := blob.Index.Ref(30), blob.Index.Ref(31)
		lane := blockfmt.Background(t.Context())
		read := make(chan time.Time)
		go func() {
			if _, err := gate.Block(lane, needed); err != nil {
				t.Error(err)
			}
			read <- time.Now()
		}()
		time.Sleep(time.Second)
		if n := asked.Total(); n != 0 {
			t.Errorf("%d blocks were asked for beside the sweep", n)
		}
		start := time.Now()
		blockfmt.Promote(lane)
		if took := (<-read).Sub(start); took > 100*time.Millisecond {
			t.Errorf("a read that became a demand read took %v", took)
		}
		if _, err := gate.Block(blockfmt.Background(t.Context()), idle); err != nil || asked.Of(idle) != 0 {
			t.Errorf("the last block was asked for %d times beside the sweep: %v", asked.Of(idle), err)
		}
	})
}
