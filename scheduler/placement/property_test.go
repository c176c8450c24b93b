package placement

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// world is a policy, and what must be true of it.
type world struct {
	p     Policy
	alive map[Instance]bool
	load  map[Instance]int // invocations under way
}

func newWorld(t *rapid.T, name string, cfg Config) *world {
	p, err := New(name, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &world{p, map[Instance]bool{}, map[Instance]int{}}
}

var (
	someInstances = rapid.Uint32Range(0, 9)
	someColours   = rapid.Map(rapid.IntRange(0, 40), func(i int) string { return fmt.Sprintf("colour-%d", i*i/8) })
)

// step does something random.
func (w *world) step(t *rapid.T) {
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0, 1:
		id := Instance(someInstances.Draw(t, "add"))
		w.add(t, id)
	case 2:
		id := Instance(someInstances.Draw(t, "remove"))
		w.remove(t, id)
	case 3:
		if r, ok := w.p.(Rebalancer); ok {
			w.checkMoves(t, r.Rebalance())
		}
	default:
		c := someColours.Draw(t, "colour")
		for range rapid.IntRange(1, 20).Draw(t, "times") {
			w.pick(t, c)
		}
	}
}

func (w *world) pick(t *rapid.T, colour string) (Instance, bool) {
	id, ok := w.p.Pick(colour)
	if ok != (len(w.alive) > 0) || ok && !w.alive[id] {
		t.Fatalf("picked %d, %v, of %v", id, ok, w.alive)
	}
	return id, ok
}

func (w *world) add(t *rapid.T, id Instance) {
	known := w.alive[id]
	moves := w.p.Add(id)
	w.alive[id] = true
	w.checkMoves(t, moves)
	for _, m := range moves {
		if m.To != id || known {
			t.Fatalf("adding %d moved %v from %d to %d", id, m.Colours, m.From, m.To)
		}
	}
}

func (w *world) remove(t *rapid.T, id Instance) {
	moves := w.p.Remove(id)
	delete(w.alive, id)
	delete(w.load, id)
	w.checkMoves(t, moves)
	for _, m := range moves {
		if m.From != id {
			t.Fatalf("removing %d moved %v from %d to %d", id, m.Colours, m.From, m.To)
		}
	}
}

func (w *world) checkMoves(t *rapid.T, moves Moves) {
	for _, m := range moves {
		if m.From == m.To || !w.alive[m.To] {
			t.Fatalf("a move from %d to %d, with %v", m.From, m.To, w.alive)
		}
	}
}

// owners asks where colours are, without a load that could send them elsewhere.
func (w *world) owners(t *rapid.T, colours []string) map[string]Instance {
	at := map[string]Instance{}
	for _, c := range colours {
		if id, ok := w.pick(t, c); ok {
			at[c] = id
		}
	}
	return at
}

func drawName(t *rapid.T) string { return rapid.SampledFrom(Names()).Draw(t, "policy") }

func TestNoHistoryLeadsToARemovedInstance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, drawName(t), Config{Colours: rapid.SampledFrom([]int{0, 10}).Draw(t, "remembered")})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.step(t)
		}
		for range 3 {
			w.pick(t, "")
		}
	})
}

func TestSameHistorySamePicks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := drawName(t)
		a, b := newWorld(t, name, Config{Seed: 7}), newWorld(t, name, Config{Seed: 7})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch id := Instance(someInstances.Draw(t, "instance")); rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				same(t, a.p.Add(id), b.p.Add(id))
			case 2:
				same(t, a.p.Remove(id), b.p.Remove(id))
			case 3:
				if r, ok := a.p.(Rebalancer); ok {
					same(t, r.Rebalance(), b.p.(Rebalancer).Rebalance())
				}
			default:
				c := someColours.Draw(t, "colour")
				x, _ := a.p.Pick(c)
				y, _ := b.p.Pick(c)
				same(t, x, y)
			}
		}
	})
}

func same(t *rapid.T, a, b any) {
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%.300s and then %.300s", fmt.Sprint(a), fmt.Sprint(b))
	}
}

// For policies that send a colour to one instance: what Moves says is what Pick does, and no other colour moves.
func TestMovesSayWhatMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, rapid.SampledFrom([]string{NameConsistentHash, NameHashSlots, NameLeastAssigned, NameAdaptive}).Draw(t, "policy"), Config{})
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			w.step(t)
		}
		w.add(t, 100)
		colours := slices.Collect(func(yield func(string) bool) {
			for i := range 60 {
				if !yield(fmt.Sprint("colour-", i)) {
					return
				}
			}
		})
		for i := range 4 {
			before := w.owners(t, colours)
			var moves Moves
			switch i {
			case 0:
				moves = w.p.Add(101)
				w.alive[101] = true
			case 1:
				if r, ok := w.p.(Rebalancer); ok {
					moves = r.Rebalance()
				}
			case 2:
				victim := slices.Min(slices.Collect(maps.Keys(w.alive)))
				moves = w.p.Remove(victim)
				delete(w.alive, victim)
			}
			compareMoves(t, before, moves, w.owners(t, colours))
		}
	})
}

func compareMoves(t *rapid.T, before map[string]Instance, moves Moves, after map[string]Instance) {
	for _, m := range moves {
		for _, c := range m.Colours {
			if from, ok := before[c]; ok {
				if from != m.From {
					t.Fatalf("%s moves from %d to %d, was at %d", c, m.From, m.To, from)
				}
				before[c] = m.To
			}
		}
	}
	if !maps.Equal(before, after) {
		t.Fatalf("moves lead to %v, picks are %v", before, after)
	}
}

// No instance gets an invocation when it has the bound's share of all, whatever the history.
func TestLoadBoundHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.SampledFrom([]float64{1.05, 1.25, 2}).Draw(t, "bound")
		w := newWorld(t, NameAdaptive, Config{LoadBound: bound, Spill: rapid.IntRange(1, 3).Draw(t, "spill"), Warm: rapid.IntRange(0, 3).Draw(t, "warm")})
		var underWay []Instance
		gone := func(id Instance) bool { return !w.alive[id] }
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
				w.step(t)
				underWay = slices.DeleteFunc(underWay, gone)
				continue
			}
			if len(underWay) > 0 && rapid.IntRange(0, 2).Draw(t, "end") == 0 {
				id := underWay[0]
				underWay = underWay[1:]
				w.p.(LoadAware).Done(id)
				w.load[id]--
			}
			id, ok := w.pick(t, someColours.Draw(t, "colour"))
			if !ok {
				continue
			}
			w.p.(LoadAware).Assigned(id)
			w.load[id]++
			underWay = append(underWay, id)
			total := 0
			for _, n := range w.load {
				total += n
			}
			if limit := bound*float64(total)/float64(len(w.alive)) + 1; float64(w.load[id]) > limit {
				t.Fatalf("%d of %d are on one of %d instances", w.load[id], total, len(w.alive))
			}
		}
	})
}
