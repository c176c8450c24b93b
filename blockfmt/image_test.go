package blockfmt_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// TestReadAt compares reads with those of the bytes in memory, by io.ReaderAt's rules.
func TestReadAt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(0, 2000).Draw(rt, "size")
		blob := blocktest.NewBlob(1, size, rapid.IntRange(1, 700).Draw(rt, "block size"))
		image := blockfmt.NewImage(blob.Index, blob)
		off := rapid.Int64Range(0, int64(size)+10).Draw(rt, "offset")
		p := make([]byte, rapid.IntRange(0, size+20).Draw(rt, "length"))
		want := bytes.Clone(p)
		n, err := image.ReadAt(t.Context(), p, off)
		wantN, wantErr := bytes.NewReader(blob.Raw).ReadAt(want, off)
		if len(p) == 0 { // bytes.Reader says EOF at the end, io.ReaderAt allows both
			wantErr = err
		}
		if n != wantN || err != wantErr || !bytes.Equal(p, want) {
			rt.Errorf("%d, %v; want %d, %v; same bytes: %v", n, err, wantN, wantErr, bytes.Equal(p, want))
		}
	})
}

func TestReadAtEdges(t *testing.T) {
	blob := blocktest.NewBlob(1, 1000, 300)
	image := blockfmt.NewImage(blob.Index, blob)
	if image.Size() != 1000 {
		t.Errorf("size %d", image.Size())
	}
	p := make([]byte, 10)
	if n, err := image.ReadAt(t.Context(), p, -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("negative offset: %d, %v", n, err)
	}
	if n, err := image.ReadAt(t.Context(), p, math.MaxInt64); n != 0 || err != io.EOF {
		t.Errorf("huge offset: %d, %v", n, err)
	}
}

// TestReadAtFaults: an error midway comes with the bytes before it, and never with wrong ones.
func TestReadAtFaults(t *testing.T) {
	blob := blocktest.NewBlob(1, 1000, 300)
	for _, fault := range blocktest.Faults() {
		if fault == blocktest.Stall {
			continue
		}
		src := &blocktest.Faulty{Next: blob, Plan: func(ref blockfmt.Ref, _ int) blocktest.Fault {
			if ref.Number == 2 {
				return fault
			}
			return blocktest.None
		}}
		p := make([]byte, 1000)
		n, err := blockfmt.NewImage(blob.Index, src).ReadAt(t.Context(), p, 0)
		if n != 600 || !errors.Is(err, fault.Kind()) || !bytes.Equal(p[:n], blob.Raw[:n]) {
			t.Errorf("%v: %d bytes, %v; want 600 and %v", fault, n, err, fault.Kind())
		}
	}
}
