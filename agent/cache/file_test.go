package cache_test

import (
	"testing"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func TestFillRanges(t *testing.T) {
	blob := blocktest.NewBlob(1, 1<<20+123, 64<<10)
	count := &blocktest.Counting{Next: blob}
	c := open(t, cache.Config{})
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
}
