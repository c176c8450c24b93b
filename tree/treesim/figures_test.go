package treesim

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var figuresFile = flag.String("figures", "", "write the figures of docs/benchmarks.md to this file; without it TestFigures looks at small worlds")

// figure is one line of a result file, as of hack/figures.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	N     int     `json:"n"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
}

func summary(name, unit string, samples ...float64) figure {
	slices.Sort(samples)
	n := len(samples)
	return figure{name, (samples[(n-1)/2] + samples[n/2]) / 2, unit, n, samples[0], samples[n-1]}
}

// size is how large the worlds of the figures are.
type size struct {
	agents, killed int   // machines; and in the worlds in which one is killed
	blocks         int   // of 122 MB
	image          int   // of 428 MB
	stored         int64 // bytes of a block: what 512 KiB of real images take
	seeds          uint64
}

var (
	thousand = size{agents: 1000, killed: 200, blocks: 122_000_000 / (180 << 10), image: 428_000_000 / (180 << 10), stored: 180 << 10, seeds: 1}
	few      = size{agents: 30, killed: 30, blocks: 150, image: 400, stored: 180 << 10, seeds: 1}
)

// TestFigures measures what docs/benchmarks.md tells of simulated trees.
func TestFigures(t *testing.T) {
	s := few
	if *figuresFile != "" {
		s = thousand
	}
	list := slices.Concat(s.spread(t), s.firstBlock(t), s.containers(t), s.rootCrash(t), s.kill(t))
	for _, f := range list {
		t.Logf("%-32s %.4g %s (%d: %.4g to %.4g)", f.Name, f.Value, f.Unit, f.N, f.Min, f.Max)
	}
	if *figuresFile == "" {
		s.check(t, list)
		return
	}
	text, err := json.MarshalIndent(list, "", "\t")
	if err == nil {
		err = os.WriteFile(*figuresFile, text, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// check knows what small worlds must reach.
func (s size) check(t *testing.T, list []figure) {
	limits := map[string]float64{"sim1000_t_over_lb": 1.3, "sim1000_one_stripe_t_over_lb": 2.3, "sim1000_first_block_seconds": 0.025, "sim_2500_on_1000_seconds": 2.5,
		"sim_egress_over_f": 1.05, "sim_root_crash_egress_over_f": 1.05, "sim_kill_p99_added_seconds": 0.1}
	for _, f := range list {
		if limit, ok := limits[f.Name]; !ok || f.Max > limit {
			t.Errorf("%s is %v, want at most %v", f.Name, f.Max, limit)
		}
		delete(limits, f.Name)
	}
	if len(limits) > 0 {
		t.Errorf("not measured: %v", limits)
	}
}

// run simulates, and fails if anything went wrong.
func (s size) run(t *testing.T, cfg Config) (r *Report) {
	t.Helper()
	start := time.Now()
	var err error
	synctest.Test(t, func(t *testing.T) { r, err = Simulate(t.Context(), cfg) })
	if err != nil || r.Wrong > 0 || r.Failed > 0 || r.Edges > 0 {
		t.Fatalf("%d blocks are wrong, %d reads failed, %d ends of edges are open: %v", r.Wrong, r.Failed, r.Edges, err)
	}
	t.Logf("%d agents, %v: %v, %.3f of the bound, egress %.3f, first block %v, misses %v, all reads %v, %+v; simulated in %v", cfg.Agents, cfg.Faults,
		r.Took, r.OverBound(), r.OverImage(), r.First, &r.Misses, &r.Reads, r.Counts, time.Since(start))
	return r
}

func (s size) all(seed uint64) Config {
	return Config{Seed: seed, Agents: s.agents, Blocks: s.blocks, BlockSize: s.stored}
}

// spread: all machines want all blocks, and join at once.
func (s size) spread(t *testing.T) []figure {
	var time, egress []float64
	for seed := range s.seeds {
		r := s.run(t, s.all(seed+1))
		time, egress = append(time, r.OverBound()), append(egress, r.OverImage())
	}
	cfg := s.all(1)
	cfg.Stripes = 1
	one := s.run(t, cfg)
	return []figure{summary("sim1000_t_over_lb", "ratio", time...), summary("sim1000_one_stripe_t_over_lb", "ratio", one.OverBound()),
		summary("sim_egress_over_f", "ratio", egress...)}
}

// firstBlock: the tree is there, and the registry begins to answer as fast as any machine does.
func (s size) firstBlock(t *testing.T) []figure {
	var samples []float64
	for seed := range s.seeds {
		cfg := s.all(seed + 1)
		cfg.Blocks, cfg.Settled, cfg.Latency = 40, true, 250*time.Microsecond
		samples = append(samples, s.run(t, cfg).First.Max.Seconds())
	}
	return []figure{summary("sim1000_first_block_seconds", "s", samples...)}
}

func (s size) programs(n, perAgent10 int, compute time.Duration) Config {
	cfg := s.all(1)
	cfg.Agents, cfg.Blocks = n, s.image
	cfg.Programs = Programs{Count: n * perAgent10 / 10, Reads: s.image * 16 / 100, Compute: compute}
	return cfg
}

// containers: five for two machines, that read 16 % of the image and compute for two seconds.
func (s size) containers(t *testing.T) []figure {
	r := s.run(t, s.programs(s.agents, 25, 2*time.Second))
	return []figure{summary("sim_2500_on_1000_seconds", "s", r.Took.Seconds())}
}

// rootCrash: a root is killed half-way.
func (s size) rootCrash(t *testing.T) []figure {
	var samples []float64
	for stripe := range 2 {
		cfg := s.all(1)
		cfg.Faults = []Fault{{Kind: Crash, At: cfg.mustBound() / 2, Target: Root, Number: stripe}}
		samples = append(samples, s.run(t, cfg).OverImage())
	}
	return []figure{summary("sim_root_crash_egress_over_f", "ratio", samples...)}
}

// mustBound is LowerBound with the defaults filled in.
func (c Config) mustBound() time.Duration {
	c, err := c.withDefaults()
	if err != nil {
		panic(err)
	}
	return c.LowerBound()
}

// kill: programs that compute little wait for every block; an inner machine is killed in the middle of that, near the root or
// far from it. What counts are the reads of those below it in the second that follows.
func (s size) kill(t *testing.T) []figure {
	at := 300 * time.Millisecond
	var samples []float64
	cfg := s.programs(s.killed, 10, 100*time.Millisecond)
	at = min(at, cfg.mustBound()/2)
	calm := s.run(t, cfg)
	for _, inner := range []int{0, 3, 9} {
		cfg.Faults = []Fault{{Kind: Crash, At: at, Target: Inner, Number: inner}}
		r := s.run(t, cfg)
		added := r.Slowest(r.Below, at, at+time.Second) - calm.Slowest(r.Below, at, at+time.Second)
		t.Logf("the %d agents below %d waited %v longer", len(r.Below), inner, added)
		samples = append(samples, added.Seconds())
	}
	return []figure{summary("sim_kill_p99_added_seconds", "s", slices.Max(samples))}
}
