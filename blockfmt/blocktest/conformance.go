package blocktest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
)

// Source checks the contract of blockfmt.Source. open returns a Source that has all blocks of blob and no others.
func Source(t *testing.T, open func(t *testing.T, blob *Blob) blockfmt.Source) {
	blob := NewBlob(1, 300<<10, 64<<10)
	t.Run("all blocks", func(t *testing.T) {
		src := open(t, blob)
		for _, ref := range blob.Refs() {
			checkBlock(t, src, blob, ref)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		src := open(t, blob)
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() { checkBlock(t, src, blob, blob.Index.Ref(i%blob.Index.Len())) })
		}
		wg.Wait()
	})
	t.Run("absent block", func(t *testing.T) {
		src := open(t, blob)
		ref := NewBlob(2, 64<<10, 64<<10).Index.Ref(0)
		if got, err := src.Block(t.Context(), ref); !errors.Is(err, blockfmt.ErrNotFound) {
			t.Errorf("%d bytes and error %v, want ErrNotFound", len(got), err)
		}
	})
	t.Run("bytes belong to the caller", func(t *testing.T) {
		src := open(t, blob)
		first, err := src.Block(t.Context(), blob.Index.Ref(0))
		if err != nil {
			t.Fatal(err)
		}
		kept := slices.Clone(first)
		for _, ref := range blob.Refs() {
			checkBlock(t, src, blob, ref)
		}
		if !bytes.Equal(first, kept) {
			t.Error("later reads changed the bytes of an earlier one")
		}
	})
	t.Run("canceled", func(t *testing.T) {
		src := open(t, blob)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got, err := src.Block(ctx, blob.Index.Ref(0))
		if err == nil && blockfmt.Verify(blob.Index.Ref(0), got) != nil {
			t.Error("wrong bytes without an error")
		}
		checkBlock(t, src, blob, blob.Index.Ref(0))
	})
}

func checkBlock(t *testing.T, src blockfmt.Source, blob *Blob, ref blockfmt.Ref) {
	t.Helper()
	got, err := src.Block(t.Context(), ref)
	if err != nil {
		t.Errorf("%v: %v", ref, err)
	} else if !bytes.Equal(got, blob.Bytes(ref)) {
		t.Errorf("%v: wrong bytes", ref)
	}
}

// Store checks the contract of blockfmt.Store, which includes that of Source. open returns an empty Store with room for
// 1 MiB at least.
func Store(t *testing.T, open func(t *testing.T) blockfmt.Store) {
	Source(t, func(t *testing.T, blob *Blob) blockfmt.Source {
		s := open(t)
		fill(t, s, blob)
		return s
	})
	blob := NewBlob(3, 200<<10, 64<<10)
	ref := blob.Index.Ref(1)
	t.Run("empty", func(t *testing.T) {
		s := open(t)
		if s.Has(ref) {
			t.Error("Has says yes")
		}
		if _, err := s.Block(t.Context(), ref); !errors.Is(err, blockfmt.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
	})
	t.Run("put twice", func(t *testing.T) {
		s := open(t)
		fill(t, s, blob)
		fill(t, s, blob)
		if !s.Has(ref) {
			t.Error("Has says no")
		}
		checkBlock(t, s, blob, ref)
	})
	for _, fault := range []Fault{WrongBytes, TooShort, TooLong, Empty} {
		t.Run("put "+fault.String(), func(t *testing.T) {
			s := open(t)
			if err := s.Put(t.Context(), ref, fault.Apply(blob.Bytes(ref))); !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("error %v, want ErrCorrupt", err)
			}
			if _, err := s.Block(t.Context(), ref); !errors.Is(err, blockfmt.ErrNotFound) {
				t.Errorf("afterwards error %v, want ErrNotFound", err)
			}
		})
	}
	t.Run("concurrent puts and reads", func(t *testing.T) { concurrentPuts(t, open(t), blob) })
}

func fill(t *testing.T, s blockfmt.Store, blob *Blob) {
	t.Helper()
	for _, ref := range blob.Refs() {
		if err := s.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatalf("put %v: %v", ref, err)
		}
	}
}

func concurrentPuts(t *testing.T, s blockfmt.Store, blob *Blob) {
	var wg sync.WaitGroup
	for i := range 32 {
		ref := blob.Index.Ref(i % blob.Index.Len())
		wg.Go(func() {
			if err := s.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
				t.Errorf("put %v: %v", ref, err)
			}
		})
		wg.Go(func() {
			got, err := s.Block(t.Context(), ref)
			if err == nil && !bytes.Equal(got, blob.Bytes(ref)) {
				t.Errorf("%v: wrong bytes", ref)
			} else if err != nil && !errors.Is(err, blockfmt.ErrNotFound) {
				t.Errorf("%v: %v", ref, err)
			}
		})
	}
	wg.Wait()
	for _, ref := range blob.Refs() {
		checkBlock(t, s, blob, ref)
	}
}
