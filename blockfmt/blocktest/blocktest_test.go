package blocktest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func TestMemory(t *testing.T) {
	blocktest.Store(t, func(*testing.T) blockfmt.Store { return new(blocktest.Memory) })
}

func TestBlobIsSource(t *testing.T) {
	blocktest.Source(t, func(_ *testing.T, b *blocktest.Blob) blockfmt.Source { return b })
}

// TestFaults checks that each fault is what its name says, by what a verifying reader sees of it.
func TestFaults(t *testing.T) {
	blob := blocktest.NewBlob(7, 100<<10, 64<<10)
	for _, f := range blocktest.Faults() {
		t.Run(f.String(), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			want := f.Kind()
			if f == blocktest.Stall {
				want = context.Canceled
				cancel()
			}
			defer cancel()
			count := &blocktest.Counting{Next: blocktest.FirstCalls(blob, 1, f)}
			image := blockfmt.NewImage(blob.Index, count)
			if _, err := image.ReadBlock(ctx, 0); !errors.Is(err, want) || want == nil {
				t.Errorf("error %v, want %v", err, want)
			}
			if _, err := image.ReadBlock(t.Context(), 0); err != nil {
				t.Errorf("second call: %v", err)
			}
			if n := count.Of(blob.Index.Ref(0)); n != 2 || count.Total() != 2 {
				t.Errorf("%d calls for the block, %d in total; want 2", n, count.Total())
			}
		})
	}
}
