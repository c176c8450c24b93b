package cache_test

import (
	"testing"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// TestCompletesDespiteDamage: a blob of which an earlier process left damaged blocks becomes complete all the same, however
// the check before the sync and the readers come together; each damaged block is logged once.
func TestCompletesDespiteDamage(t *testing.T) {
	blob := blocktest.NewBlob(1, 640<<10, 64<<10)
	for range 10 {
		logs := &logBook{}
		cfg := cache.Config{Dir: t.TempDir(), Logger: logs.logger()}
		session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) { checkRange(t, f, blob, 0, 500<<10) })
		data := find(t, cfg.Dir, "sparse", "")
		flip(t, data, 5)
		flip(t, data, 450<<10)
		session(t, cfg, blob, func(_ *cache.Cache, f *cache.File) {
			checkRange(t, f, blob, 0, len(blob.Raw))
			waitComplete(t, f)
			checkRange(t, f, blob, 0, len(blob.Raw))
		})
		if w := logs.lines(); len(w) != 2 {
			t.Errorf("logged %q, want a line for each of 2 blocks", w)
		}
	}
}
