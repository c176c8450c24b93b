package treesim

import (
	"testing"
	"testing/synctest"
	"time"
)

func simulate(t *testing.T, cfg Config) (r *Report) {
	t.Helper()
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = Simulate(t.Context(), cfg); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%v real: T %v = %.3f LB, egress %.3f F, first %v/%v/%v, misses %v, %+v", time.Since(real), r.Took, r.OverBound(), r.OverImage(), r.First.Min, r.First.Median, r.First.Max, &r.Misses, r.Counts)
	return r
}

func TestSmall(t *testing.T) {
	r := simulate(t, Config{Seed: 1, Agents: 20, Blocks: 100, BlockSize: 180 << 10})
	if r.Wrong != 0 || r.Edges != 0 {
		t.Errorf("%+v", r)
	}
}

func TestBig(t *testing.T) {
	simulate(t, Config{Seed: 1, Agents: 1000, Blocks: 122_000_000 / (180 << 10), BlockSize: 180 << 10})
}
