package treesim

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	for i := range 1000 {
		h.Add(time.Duration(i+1) * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := h.Quantile(q); got < want || float64(got) > 1.05*float64(want) {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	for range 2000 {
		h.Add(0)
	}
	if h.Quantile(0.5) != 0 || h.N != 3000 || h.Max != time.Second {
		t.Errorf("with many that took no time: %v", h)
	}
}

func TestRange(t *testing.T) {
	if got, want := rangeOf([]time.Duration{5, 1, 3}), (Range{3, 1, 3, 5}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := rangeOf(nil); got != (Range{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestSlowest(t *testing.T) {
	r := Report{Spans: []Span{{"a", 0, 10}, {"b", 0, 2 * time.Second}, {"a", time.Second, time.Second}, {"a", 5 * time.Second, time.Minute}}}
	if got := r.Slowest([]stream.PeerID{"a"}, 500*time.Millisecond, 3*time.Second); got != time.Second {
		t.Errorf("of a %v, want 1s", got)
	}
	if got := r.Slowest(nil, 500*time.Millisecond, 3*time.Second); got != 2*time.Second {
		t.Errorf("of all %v, want 2s", got)
	}
}

// TestReplay: a report that was written is enough to run the simulation again, with the same agents coming in the same order
// and the same faults hitting the same machines at the same time.
func TestReplay(t *testing.T) {
	cfg := village()
	cfg.Arrive, cfg.Network.Loss = 300*time.Millisecond, 0.001
	cfg.Faults = []Fault{{Kind: Crash, At: 100 * time.Millisecond, Target: Anyone, Number: 4, For: time.Second}, {Kind: Slow, At: 200 * time.Millisecond, Target: Anyone, Number: 7},
		{Kind: Split, At: 250 * time.Millisecond, For: 20 * time.Millisecond}}
	first := simulate(t, cfg)
	var text bytes.Buffer
	if err := first.Write(&text); err != nil {
		t.Fatal(err)
	}
	read, err := ReadReport(&text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read.Events, first.Events) {
		t.Error("events were changed by writing and reading them")
	}
	second := simulate(t, read.Config)
	plan := func(r *Report) (list []Event) {
		for _, e := range r.Events {
			if slices.Contains([]string{"join", string(Crash), string(Slow), string(Split), "over"}, e.What) && e.At < 300*time.Millisecond {
				list = append(list, e)
			}
		}
		return list
	}
	if a, b := plan(first), plan(second); !slices.Equal(a, b) || len(a) < 18 {
		t.Errorf("first\n%v\nand then\n%v", a, b)
	}
	if off := (first.Took - second.Took).Abs(); off > first.Took/5 {
		t.Errorf("took %v, and then %v", first.Took, second.Took)
	}
}

// TestRepeatsExactly: without races between the goroutines of an agent, that is with roots that fetch one block at a time and
// nothing lost, a simulation repeats itself to the nanosecond.
func TestRepeatsExactly(t *testing.T) {
	cfg := village()
	cfg.Member.Workers = 1
	first, second := simulate(t, cfg), simulate(t, cfg)
	if first.First != second.First || first.Full != second.Full || !slices.Equal(first.Events, second.Events) {
		t.Errorf("first %v, %v, and then %v, %v", first.First, first.Full, second.First, second.Full)
	}
	cfg.Arrive = 100 * time.Millisecond
	third := simulate(t, cfg)
	cfg.Seed++
	if fourth := simulate(t, cfg); third.Full == fourth.Full {
		t.Error("another seed changes nothing")
	}
}

func TestRandomFaults(t *testing.T) {
	kinds := map[Kind]bool{}
	for seed := range uint64(100) {
		faults := RandomFaults(seed, 20, time.Second)
		if !slices.Equal(faults, RandomFaults(seed, 20, time.Second)) || len(faults) == 0 {
			t.Errorf("seed %d: %v", seed, faults)
		}
		for i, f := range faults {
			kinds[f.Kind] = true
			if f.At >= time.Second || f.Number >= 20 || i > 0 && f.At < faults[i-1].At {
				t.Errorf("seed %d: %v", seed, f)
			}
		}
	}
	if len(kinds) != 11 {
		t.Errorf("kinds %v", kinds)
	}
}

func TestStore(t *testing.T) {
	c, err := newContent(4, 100, 2)
	if err != nil {
		t.Fatal(err)
	}
	var added []int
	s := newStore(c, func(held int) { added = append(added, held) })
	ctx, ref := context.Background(), c.image.Ref(2)
	if _, err := s.Block(ctx, ref); !errors.Is(err, blockfmt.ErrNotFound) || s.Has(ref) {
		t.Errorf("absent block: %v", err)
	}
	for name, bad := range map[string][]byte{"another block": c.of(c.image.Ref(1)), "too short": c.of(ref)[:99], "zeros": make([]byte, 100)} {
		if err := s.Put(ctx, ref, bad); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 2 {
		if err := s.Put(ctx, ref, c.of(ref)); err != nil {
			t.Error(err)
		}
	}
	got, err := s.Block(ctx, ref)
	if err != nil || c.verify(ref, got) != nil || !s.Has(ref) || s.len() != 1 || s.wrong() != 0 || !slices.Equal(added, []int{1}) {
		t.Errorf("%d blocks, %v; added %v", s.len(), err, added)
	}
	if err := s.Keep(ctx, c.image.Ref(3), got); err != nil || s.wrong() != 1 {
		t.Errorf("%d wrong blocks, %v", s.wrong(), err)
	}
}

// TestRegistryEnds: a request whose registry ends, or whose reader gives up, fails at once.
func TestRegistryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(NetworkConfig{})
		t.Cleanup(run(n))
		c, err := newContent(4, 100, 1)
		if err != nil {
			t.Fatal(err)
		}
		r := &registry{net: n, content: c, latency: time.Second, opens: make(chan struct{}), log: func(string, string, string) {}, asked: map[int]int{}}
		r.open()
		close(r.opens)
		add(t, n, "agent", Link{})
		src, ref := r.source("agent"), c.image.Ref(1)
		start := time.Now()
		got, err := src.Block(t.Context(), ref)
		if err != nil || c.verify(ref, got) != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		about(t, "a request", time.Since(start), time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := src.Block(ctx, ref); err == nil {
			t.Error("a reader that gave up got bytes")
		}
		time.AfterFunc(100*time.Millisecond, func() { n.Crash(registryID) })
		if _, err := src.Block(t.Context(), ref); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("while the registry ends: %v", err)
		}
		if _, err := src.Block(t.Context(), ref); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("after that: %v", err)
		}
	})
}
