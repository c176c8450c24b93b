package treesim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree"
	"github.com/xylem-project/xylem/tree/stream"
)

// simulate runs a simulation that must succeed.
func simulate(t *testing.T, cfg Config) (r *Report) {
	t.Helper()
	var err error
	synctest.Test(t, func(t *testing.T) { r, err = Simulate(t.Context(), cfg) })
	if err != nil || r.Wrong > 0 || r.Edges > 0 {
		t.Fatalf("%d blocks are wrong, %d ends of edges are open: %v", r.Wrong, r.Edges, err)
	}
	return r
}

// village is a small world.
func village() Config {
	return Config{Seed: 1, Agents: 16, Blocks: 100, BlockSize: 180 << 10, Measured: true}
}

// when returns when the first event of a kind was; false if none was.
func when(r *Report, what string) (time.Duration, bool) {
	i := slices.IndexFunc(r.Events, func(e Event) bool { return e.What == what })
	if i < 0 {
		return 0, false
	}
	return r.Events[i].At, true
}

func TestAllHaveAll(t *testing.T) {
	for _, stripes := range []int{1, 2, 4} {
		cfg := village()
		cfg.Stripes = stripes
		r := simulate(t, cfg)
		if r.Full.N != 16 || r.First.N != 16 || r.Egress != cfg.wanted() || r.Counts.Pushed != 15*100 || r.Took < r.Bound {
			t.Errorf("%d stripes: %d have all, egress %d of %d, %+v, took %v of %v", stripes, r.Full.N, r.Egress, cfg.wanted(), r.Counts, r.Took, r.Bound)
		}
	}
}

// TestSlowMachineBecomesALeaf: a machine whose uplink has a tenth of the others' rate costs them little if that is known.
func TestSlowMachineBecomesALeaf(t *testing.T) {
	even := simulate(t, village())
	cfg := village()
	cfg.Links = map[int]Link{2: {gigabit / 10, gigabit}, 9: {gigabit / 10, gigabit}}
	known := simulate(t, cfg)
	cfg.Measured = false
	unknown := simulate(t, cfg)
	if float64(known.Took) > 1.5*float64(even.Took) || unknown.Took < 2*known.Took {
		t.Errorf("without slow machines %v, with known ones %v, with unknown ones, in less time than it takes to measure, %v", even.Took, known.Took, unknown.Took)
	}
}

// freight is a small world in which it takes several heartbeats to give everybody all blocks, and nobody knows any rates before.
func freight(seed uint64) Config {
	return Config{Seed: seed, Agents: 17, Blocks: 400, BlockSize: 180 << 10, Link: Link{gigabit / 10, gigabit / 10}}
}

// TestSlowUplinkIsFound: a machine whose uplink has a tenth of the others' rate, or comes to have it, costs them little though nobody
// knows it before: it is measured, and feeds nobody any more.
func TestSlowUplinkIsFound(t *testing.T) {
	even := simulate(t, freight(1)).Took
	found := 0
	for seed := range uint64(4) {
		cfg := freight(seed)
		number := int(seed*7) % cfg.Agents
		cfg.Links = map[int]Link{number: {gigabit / 100, gigabit / 10}}
		found += isFound(t, fmt.Sprint("slow from the beginning, seed ", seed), cfg, even, func(*Report) stream.PeerID {
			return stream.PeerID(fmt.Sprintf("agent-%04d", number))
		})
	}
	cfg := freight(1)
	cfg.Blocks *= 2
	even = simulate(t, cfg).Took
	for i, target := range []Target{Root, Root, Inner} {
		cfg.Seed, cfg.Faults = uint64(i), []Fault{{Kind: Slow, At: 2 * time.Second, Target: target, Number: i}}
		found += isFound(t, fmt.Sprintf("%s %d becomes slow", target, i), cfg, even, func(r *Report) stream.PeerID {
			at := slices.IndexFunc(r.Events, func(e Event) bool { return e.What == string(Slow) })
			return stream.PeerID(r.Events[at].Whom)
		})
	}
	if found < 6 {
		t.Errorf("%d slow machines were found", found)
	}
}

// isFound simulates a world with a slow machine, and returns 1 if it was found, 0 if it fed nobody anyway.
func isFound(t *testing.T, what string, cfg Config, even time.Duration, slow func(*Report) stream.PeerID) int {
	r := simulate(t, cfg)
	id, n := slow(r), 0
	for _, e := range r.Events {
		if e.What == "demoted" {
			if n++; e.Whom != string(id) {
				t.Errorf("%s: %v, but %s is slow", what, e, id)
			}
		}
	}
	if over := float64(r.Full.Max) / float64(even); slices.Contains(r.Feeding, id) || n > 1 || over > 1.4 {
		t.Errorf("%s: %s was found %d times; %v feed others, all have all after %.2f times as long", what, id, n, r.Feeding, over)
	}
	t.Logf("%s: after %.2f times as long, egress %.2f", what, float64(r.Full.Max)/float64(even), r.OverImage())
	return n
}

// TestSlowDownlinkIsNoFault: whoever feeds a machine that cannot take more is not slow, with others to feed or without.
func TestSlowDownlinkIsNoFault(t *testing.T) {
	for seed := range uint64(3) {
		cfg := freight(seed)
		cfg.Blocks = 200
		number := int(seed*7) % cfg.Agents
		cfg.Links = map[int]Link{number: {gigabit / 10, gigabit / 100}}
		r := simulate(t, cfg)
		for _, e := range r.Events {
			if e.What == "demoted" && e.Whom != fmt.Sprintf("agent-%04d", number) { // which has little to give
				t.Errorf("seed %d, link %v: %v", seed, cfg.Links, e)
			}
		}
	}
}

// TestPrograms: programs that know what they will read start as fast as they compute.
func TestPrograms(t *testing.T) {
	cfg := village()
	cfg.Programs = Programs{Count: 40, Reads: 50, Compute: time.Second}
	recorded := simulate(t, cfg)
	if n := recorded.Ready.N; n != 40 || recorded.Took > 1200*time.Millisecond || recorded.Took != recorded.Ready.Max {
		t.Errorf("%d programs are ready after %v", n, recorded.Took)
	}
	if recorded.Reads.N != 40*50 || len(recorded.Spans) != 40*50 || recorded.Misses.N == 0 || recorded.Misses.N > 400 {
		t.Errorf("%d reads, %d misses", recorded.Reads.N, recorded.Misses.N)
	}
	cfg.Programs.Unrecorded, cfg.Programs.Strays = true, 0.1
	live := simulate(t, cfg)
	if live.Misses.N <= recorded.Misses.N || live.OverImage() > 1.01 || live.Took > 2*time.Second {
		t.Errorf("without a record: %d misses, with one %d; egress %.2f, ready after %v", live.Misses.N, recorded.Misses.N, live.OverImage(), live.Took)
	}
}

// TestFaultsAreNoticed: who notices what, when, and what the owner does about it.
func TestFaultsAreNoticed(t *testing.T) {
	for name, tc := range map[string]struct {
		fault         Fault
		what          string
		after, before time.Duration
	}{
		"children report a parent that crashed": {Fault{Kind: Crash, Target: Inner}, "failed", 0, 10 * time.Millisecond},
		"the owner misses who is silent":        {Fault{Kind: Stall, Target: Inner, For: 5 * time.Second}, "failed", deadAfter - time.Second, deadAfter + time.Second},
		"who lies is demoted":                   {Fault{Kind: LieBytes, Target: Inner}, "demoted", 0, 2 * beatInterval},
		"who sends what nobody asked for":       {Fault{Kind: LieUnasked, Target: Inner}, "cut off", 0, time.Second},
		"who counts wrong":                      {Fault{Kind: LieIndex, Target: Inner}, "cut off", 0, time.Second},
		"another root":                          {Fault{Kind: Wipe, Target: Root, Number: 1, For: time.Second}, "over", time.Second, 1100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := village()
			cfg.Link = Link{gigabit / 10, gigabit}
			tc.fault.At = 500 * time.Millisecond
			cfg.Faults = []Fault{tc.fault}
			cfg.Programs = Programs{Count: 16, Reads: 90, Compute: 5 * time.Second}
			r := simulate(t, cfg)
			at, ok := when(r, tc.what)
			if took := at - tc.fault.At; !ok || took < tc.after || took > tc.before {
				t.Errorf("%q after %v, %v; want %v to %v; events %v", tc.what, took, ok, tc.after, tc.before, r.Events)
			}
			if r.Failed > 0 || r.Misses.Max > time.Second && tc.fault.Kind != Stall { // who stalls waits for as long
				t.Errorf("%d reads failed, the longest took %v", r.Failed, r.Misses.Max)
			}
		})
	}
}

// TestOwnerComesBack: trees go on feeding without their owner, and another one takes over what was stored.
func TestOwnerComesBack(t *testing.T) {
	cfg := village()
	cfg.Link = Link{gigabit / 10, gigabit}
	cfg.Faults = []Fault{{Kind: OwnerDown, At: 300 * time.Millisecond, For: time.Second}, {Kind: Crash, At: 400 * time.Millisecond, Target: Anyone, Number: 3},
		{Kind: Slow, At: 2 * time.Second, Target: Anyone, Number: 5, For: 2 * time.Second}}
	r := simulate(t, cfg)
	if r.Full.N < 15 || r.OverImage() > 1.3 {
		t.Errorf("%d have all, egress %.2f", r.Full.N, r.OverImage())
	}
	if at, ok := when(r, "failed"); !ok || at < 1300*time.Millisecond {
		t.Errorf("the crash was noticed after %v, %v", at, ok)
	}
}

// TestRegistryDown: what is here already is spread, and the rest when the registry is back.
func TestRegistryDown(t *testing.T) {
	cfg := village()
	cfg.Faults = []Fault{{Kind: Down, At: 60 * time.Millisecond, For: 3 * time.Second}}
	r := simulate(t, cfg)
	if r.Full.N != 16 || r.Took < 3*time.Second || r.Took > 6*time.Second || r.OverImage() > 1.1 {
		t.Errorf("%d have all after %v, egress %.2f", r.Full.N, r.Took, r.OverImage())
	}
}

// TestHalves: a network that falls apart for longer than the owner waits.
func TestHalves(t *testing.T) {
	cfg := village()
	cfg.Link = Link{gigabit / 20, gigabit}
	cfg.Faults = []Fault{{Kind: Split, At: 200 * time.Millisecond, For: 5 * time.Second}}
	r := simulate(t, cfg)
	if n := r.Count("failed"); n < 7 || r.Full.N != 16 {
		t.Errorf("%d were taken for dead, %d have all", n, r.Full.N)
	}
}

func TestLimit(t *testing.T) {
	cfg := village()
	cfg.Limit = time.Second
	cfg.Faults = []Fault{{Kind: Down}}
	for _, count := range []int{0, 1} {
		cfg.Programs = Programs{Count: count, Reads: 10}
		if count > 0 {
			cfg.Faults = []Fault{{Kind: Slow, At: time.Minute}}
		}
		synctest.Test(t, func(t *testing.T) {
			_, err := Simulate(t.Context(), cfg)
			if !errors.Is(err, errLimit) || !strings.Contains(err.Error(), "of") {
				t.Errorf("%v, want that the limit is exceeded", err)
			}
		})
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"no agents":      func(c *Config) { c.Agents = 0 },
		"no blocks":      func(c *Config) { c.Blocks = 0 },
		"tiny blocks":    func(c *Config) { c.BlockSize = 3 },
		"huge blocks":    func(c *Config) { c.BlockSize = blockfmt.MaxBlockSize + 1 },
		"three stripes":  func(c *Config) { c.Stripes = 3 },
		"too many reads": func(c *Config) { c.Programs = Programs{Count: 1, Reads: 101} },
	} {
		cfg := village()
		edit(&cfg)
		if _, err := Simulate(context.Background(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLowerBound(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want time.Duration
	}{
		{Config{Agents: 10, Blocks: 100, BlockSize: 10, Link: Link{100, 1000}, Registry: Link{500, 0}}, 10000 * time.Second / 1500},
		{Config{Agents: 10, Blocks: 100, BlockSize: 10, Link: Link{1000, 50}, Registry: Link{500, 0}}, 20 * time.Second},
		{Config{Agents: 10, Blocks: 100, BlockSize: 10, Link: Link{1000, 1000}, Registry: Link{10, 0}}, 100 * time.Second},
		{Config{Agents: 10, Blocks: 100, BlockSize: 10, Link: Link{1000, 1000}, Registry: Link{10, 0}, Programs: Programs{Count: 1, Reads: 5}}, 5 * time.Second},
	} {
		if got := tc.cfg.LowerBound(); (got - tc.want).Abs() > time.Microsecond {
			t.Errorf("%+v: %v, want %v", tc.cfg, got, tc.want)
		}
	}
}

func TestNumberOfEpochs(t *testing.T) {
	var last uint64
	for _, e := range []tree.Epoch{{Term: 1, Seq: 1}, {Term: 1, Seq: 1 << 39}, {Term: 2}, {Term: 2, Seq: 7}, {Term: 1 << 20}} {
		if n := number(e); n <= last {
			t.Errorf("%v is %d, after %d", e, n, last)
		} else {
			last = n
		}
	}
}
