package treesim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds = flag.Int("seeds", 20, "how many worlds with faults TestSeeds simulates")
	seed  = flag.Uint64("seed", 1, "the first of them")
)

// randomWorld is a small world in which much goes wrong, by seed.
func randomWorld(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 0x3d))
	pick := func(list ...int) int { return list[rng.IntN(len(list))] }
	cfg := Config{Seed: seed, Agents: pick(8, 12, 20, 40), Stripes: pick(1, 2, 2, 4), Blocks: 20 + rng.IntN(150), BlockSize: int64(pick(20, 60, 180)) << 10,
		Link: Link{int64(pick(10, 50, 125)) * 1_000_000, 125_000_000}, Arrive: time.Duration(rng.IntN(1000)) * time.Millisecond, Measured: rng.IntN(2) == 0,
		Links: map[int]Link{}, Network: NetworkConfig{Loss: float64(pick(0, 0, 1, 10)) / 1000}}
	for range rng.IntN(3) {
		cfg.Links[rng.IntN(cfg.Agents)] = Link{cfg.Link.Up / 10, cfg.Link.Down}
	}
	if rng.IntN(2) == 0 {
		reads := cfg.Blocks/2 + 1
		cfg.Programs = Programs{Count: cfg.Agents * pick(1, 2, 3), Reads: reads, Compute: time.Second, Strays: 0.1, Unrecorded: rng.IntN(3) == 0}
	}
	cfg.Faults = RandomFaults(seed, cfg.Agents, 2*time.Second)
	return cfg
}

// TestSeeds: whatever goes wrong, every read gets right bytes in time, agents get all that they want, the registry is
// read little more than once, and nothing is left behind.
func TestSeeds(t *testing.T) {
	for s := *seed; s < *seed+uint64(*seeds); s++ {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			cfg := randomWorld(s)
			var r *Report
			var err error
			synctest.Test(t, func(t *testing.T) { r, err = Simulate(t.Context(), cfg) })
			if err != nil {
				t.Error(err)
			}
			judge(t, cfg, r)
		})
	}
}

func judge(t *testing.T, cfg Config, r *Report) {
	cut := slices.ContainsFunc(cfg.Faults, func(f Fault) bool { return f.Kind == Down || f.Kind == Split || f.Kind == Stall })
	if r.Wrong > 0 || r.Failed > 0 && !cut || r.Edges > 0 {
		t.Errorf("%d blocks are wrong, %d reads failed, %d ends of edges are open", r.Wrong, r.Failed, r.Edges)
	}
	if limit := 5*time.Second + 4*r.Bound; r.Reads.Max > limit {
		t.Errorf("a read took %v", r.Reads.Max)
	}
	if limit := egressLimit(cfg, r); r.OverImage() > limit {
		t.Errorf("the registry sent %.2f times the image, want at most %.2f", r.OverImage(), limit)
	}
	if t.Failed() {
		t.Logf("loss %v, arrive %v, link %v, links %v, %+v", cfg.Network.Loss, cfg.Arrive, cfg.Link, cfg.Links, cfg.Programs)
		for _, e := range r.Events[:min(len(r.Events), 500)] {
			if e.What != "join" {
				t.Log(e)
			}
		}
	}
	t.Logf("%d agents, %d blocks, %v: %v, egress %.2f, misses %v, reads %v, %+v", cfg.Agents, cfg.Blocks, cfg.Faults, r.Took, r.OverImage(), &r.Misses, &r.Reads, r.Counts)
}

// egressLimit is how many times the registry may send the image. A root that is replaced has up to 8 blocks on their way. Who
// reaches nobody for a second reads the registry, and so does who joins while there is no owner, or only on the other side of a
// split. A slow root has much that nobody else has when it is replaced.
func egressLimit(cfg Config, r *Report) float64 {
	limit := 1.05 + 8*float64(r.Count("root"))*float64(cfg.BlockSize)/float64(cfg.wanted())
	limit += float64(len(cfg.Links))
	for _, f := range cfg.Faults {
		switch {
		case f.Kind == OwnerDown && f.At < cfg.Arrive:
			return float64(cfg.Agents)
		case f.Kind == Split && f.At < cfg.Arrive:
			limit += float64(cfg.Agents) / 2
		case f.Kind == Slow:
			limit++
		case f.Kind != Down:
			limit += 0.5
		}
	}
	return limit
}
