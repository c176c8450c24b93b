package placement

import (
	"fmt"
	"slices"
	"testing"
)

func adaptivePolicy(t *testing.T, cfg Config, instances int) *adaptive {
	return build(t, NameAdaptive, cfg, instances).(*adaptive)
}

func TestRebalanceEvensLoad(t *testing.T) {
	p := adaptivePolicy(t, Config{}, 10)
	picks := func() (most, all int) {
		at := map[Instance]int{}
		for i := range 500 {
			for range 1 + 500/(5+i) {
				id, _ := p.Pick(fmt.Sprint("colour-", i))
				at[id]++
				all++
			}
		}
		for _, n := range at {
			most = max(most, n)
		}
		return most, all
	}
	before, all := picks()
	for range 5 {
		p.Rebalance()
		picks()
	}
	after, _ := picks()
	if float64(after) > 1.1*float64(all)/10 || after >= before {
		t.Errorf("the busiest of 10 instances has %d of %d picks, %d before", after, all, before)
	}
}

// A layout that fits what is measured stays: the next minutes of the same traffic move next to nothing.
func TestRebalanceMovesLittleWithoutNeed(t *testing.T) {
	for warm, most := range map[int]int{0: 10, 5: 50} {
		p := adaptivePolicy(t, Config{Warm: warm}, 10)
		moved := 0
		for round := range 25 {
			for i := range 100 {
				for range 1 + 1000/(10+i) {
					p.Pick(fmt.Sprint("colour-", i))
				}
			}
			for _, m := range p.Rebalance() {
				if round >= 15 {
					moved += len(m.Colours)
				}
			}
		}
		if moved > most {
			t.Errorf("%d warm: 100 colours moved %d times in 10 rounds, want at most %d", warm, moved, most)
		}
	}
}

// A colour with more load than an instance may have is on several with a bound, with the same load on each, and on one without.
func TestHotColourIsSplitByTheBoundOnly(t *testing.T) {
	for bound, want := range map[float64]int{0: 1, 1.25: 4} {
		p := adaptivePolicy(t, Config{LoadBound: bound}, 10)
		for range 3 {
			for i := range 60 {
				for range 10 {
					p.Pick("hot") // 10 of 25 picks: the load of 4 of 10 instances
				}
				for j := range 15 {
					p.Pick(fmt.Sprint("cold-", (i*15+j)%300))
				}
			}
			p.Rebalance()
		}
		at := map[Instance]int{}
		for range 1000 {
			id, _ := p.Pick("hot")
			at[id]++
		}
		if len(at) != want {
			t.Errorf("bound %v: the hot colour is on %d instances, want %d", bound, len(at), want)
		}
		for id, n := range at {
			if n < 1000/want-10 || n > 1000/want+10 {
				t.Errorf("bound %v: instance %d has %d of 1,000 picks", bound, id, n)
			}
		}
		if c := p.Candidates("hot", nil); len(c) < want || !slices.Contains(c, pickOf(p, "hot")) {
			t.Errorf("bound %v: candidates are %v", bound, c)
		}
	}
}

func pickOf(p Policy, colour string) Instance {
	id, _ := p.Pick(colour)
	return id
}

// What instances can keep warm decides who shares them: with too many colours, the hottest are by themselves.
func TestHotColoursAreApartFromCold(t *testing.T) {
	mixed := func(warm int) (n int) {
		p := adaptivePolicy(t, Config{Warm: warm}, 8)
		for range 20 {
			for i := range 60 {
				for range 10 {
					p.Pick(fmt.Sprint("hot-", i))
				}
			}
			for i := range 600 {
				p.Pick(fmt.Sprint("cold-", i))
			}
			p.Rebalance()
		}
		hot := map[Instance]bool{}
		for i := range 60 {
			hot[pickOf(p, fmt.Sprint("hot-", i))] = true
		}
		for i := range 600 {
			if hot[pickOf(p, fmt.Sprint("cold-", i))] {
				n++
			}
		}
		return n
	}
	if n := mixed(20); n > 60 {
		t.Errorf("%d of 600 cold colours are with hot ones, although these have room", n)
	}
	if n := mixed(0); n < 300 {
		t.Errorf("%d of 600 cold colours are with hot ones, although nothing says that they must not", n)
	}
}

// Invocations that find their instance at the bound stay within the colour's list, as long as that has room.
func TestSpillStaysInTheList(t *testing.T) {
	p := adaptivePolicy(t, Config{LoadBound: 1.5, Spill: 3}, 20)
	for i := range 20 { // a load of 100 everywhere, so that the bound is at 150
		for range 100 {
			p.Assigned(Instance(i))
		}
	}
	list := p.Candidates("colour", nil)
	if len(list) != 3 {
		t.Fatalf("candidates are %v, want 3", list)
	}
	var got []Instance
	for range 120 {
		id := pickOf(p, "colour")
		p.Assigned(id)
		if !slices.Contains(got, id) {
			got = append(got, id)
		}
	}
	if len(got) < 2 || got[0] != list[0] {
		t.Errorf("picked %v in turn, candidates are %v", got, list)
	}
	for _, id := range got {
		if !slices.Contains(list, id) {
			t.Errorf("picked %d, candidates are %v", id, list)
		}
	}
}

func TestEmptyColourIsSpreadByLoad(t *testing.T) {
	for _, name := range Names() {
		p := build(t, name, Config{}, 10)
		at := map[Instance]int{}
		for range 1000 {
			id, ok := p.Pick("")
			if !ok {
				t.Fatalf("%s: no instance", name)
			}
			if l, ok := p.(LoadAware); ok {
				l.Assigned(id)
			}
			at[id]++
		}
		for id := range Instance(10) {
			if at[id] < 60 || at[id] > 140 {
				t.Errorf("%s: instance %d has %d of 1,000", name, id, at[id])
			}
		}
	}
}

// A policy remembers no more than it is told to, and forgets what is picked least.
func TestColdColoursAreForgotten(t *testing.T) {
	p := build(t, NameLeastAssigned, Config{Colours: 100}, 4).(*leastAssigned)
	hot := pickOf(p, "hot")
	for i := range 10000 {
		p.Pick(fmt.Sprint("colour-", i))
		if id := pickOf(p, "hot"); id != hot {
			t.Fatalf("the hot colour went from %d to %d", hot, id)
		}
	}
	sum := 0
	for _, n := range p.assigned {
		sum += n
	}
	if p.n > 100 || sum != p.n {
		t.Errorf("%d colours are remembered, %d assigned, want at most 100 of both", p.n, sum)
	}
}

// After an instance is gone and its load with it, the bound is that of the others.
func TestLoadLeavesWithItsInstance(t *testing.T) {
	p := adaptivePolicy(t, Config{LoadBound: 1.25}, 3)
	for range 50 {
		p.Assigned(2)
	}
	p.Remove(2)
	p.Done(2)
	if n := p.total.Load(); n != 0 {
		t.Errorf("load of all is %d with nothing under way", n)
	}
}
