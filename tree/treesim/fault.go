package treesim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/xylem-project/xylem/tree"
	"github.com/xylem-project/xylem/tree/stream"
)

// Kind of a Fault.
type Kind string

// The kinds of faults.
const (
	Crash      Kind = "crash"       // an agent ends; after For it is back with its blocks
	Wipe       Kind = "wipe"        // an agent ends; after For it is back without blocks
	Stall      Kind = "stall"       // a host sends and receives nothing
	Slow       Kind = "slow"        // a host's uplink has a tenth of its rate
	Split      Kind = "split"       // the network falls into halves
	OwnerDown  Kind = "owner"       // the tree's owner ends; after For another takes over
	Down       Kind = "registry"    // the registry ends
	LieBytes   Kind = "lie bytes"   // an agent sends wrong bytes, as many as there should be
	LieIndex   Kind = "lie index"   // an agent sends a block with a number that the image does not have
	LieUnasked Kind = "lie unasked" // an agent sends blocks that nobody asked for
	LieEpoch   Kind = "lie epoch"   // an agent attaches with an epoch of long ago
)

// lies says whether a fault is one of an agent that breaks the protocol, which it does from then on.
func (k Kind) lies() bool { return k == LieBytes || k == LieIndex || k == LieUnasked || k == LieEpoch }

// Target says whom a fault hits, when it comes.
type Target string

// The targets of faults.
const (
	Anyone Target = "anyone" // that Number points to
	Root   Target = "root"   // of the stripe that is Number
	Inner  Target = "inner"  // who feeds others, below the root, in the stripe Number
)

// A Fault is something that goes wrong.
type Fault struct {
	Kind   Kind          `json:"kind"`
	At     time.Duration `json:"at"`            // after the work began
	For    time.Duration `json:"for,omitempty"` // 0: for good
	Target Target        `json:"target,omitempty"`
	Number int           `json:"number,omitempty"`
}

// schedule plans a fault and its end.
func (w *world) schedule(f Fault) {
	w.open(+1)
	w.net.After(f.At, 1, func() {
		undo := w.strike(f)
		if f.For == 0 {
			w.open(-1)
			return
		}
		w.net.After(f.For, 1, func() {
			undo()
			w.log("over", string(f.Kind), "")
			w.open(-1)
		})
	})
}

// strike lets a fault happen and returns what ends it.
func (w *world) strike(f Fault) (undo func()) {
	switch f.Kind {
	case Split:
		w.log(string(f.Kind), "", "")
		w.net.Split(w.side)
		return w.net.Heal
	case OwnerDown:
		w.log(string(f.Kind), "", "")
		w.owner.stop()
		return w.owner.restart
	case Down:
		w.log(string(f.Kind), "", "")
		w.net.Crash(registryID)
		return w.registry.open
	}
	a := w.target(f)
	if a == nil {
		w.log(string(f.Kind), "nobody", "")
		return func() {}
	}
	w.log(string(f.Kind), string(a.id), "")
	return w.hit(a, f.Kind)
}

// hit lets a fault happen to an agent.
func (w *world) hit(a *agent, kind Kind) (undo func()) {
	switch kind {
	case Crash, Wipe:
		w.noteBelow(a)
		a.crash()
		return func() { w.restart(a, kind == Wipe) }
	case Stall:
		w.net.Stall(a.id, true)
		return func() { w.net.Stall(a.id, false) }
	case Slow:
		w.net.SetLink(a.id, Link{max(a.link.Up/10, 1), a.link.Down})
		return func() { w.net.SetLink(a.id, a.link) }
	}
	a.lie.Store(&lie{world: w, kind: kind, every: w.cfg.Seed})
	return func() {}
}

// noteBelow notes who is below an agent that is about to crash.
func (w *world) noteBelow(a *agent) {
	t := w.owner.tree()
	if t == nil {
		return
	}
	for stripe := range t.Stripes() {
		below := map[tree.ID]bool{tree.ID(a.id): true}
		for id := range t.Walk(stripe) {
			if parent, ok := t.Parent(id, stripe); ok && below[parent] {
				below[id] = true
				w.below = append(w.below, stream.PeerID(id))
			}
		}
	}
}

// restart brings an agent back.
func (w *world) restart(a *agent, wiped bool) {
	if wiped && a.process() == nil {
		a.mu.Lock()
		a.store, a.first, a.full = newStore(w.content, a.added), 0, 0
		a.mu.Unlock()
	}
	if err := a.start(); err != nil {
		w.fail(err)
	}
}

// side puts half of the agents, and the registry, on the side of the owner.
func (w *world) side(id stream.PeerID) int {
	if a := w.byID[id]; a != nil {
		return a.number % 2
	}
	return 0
}

// target finds whom a fault hits.
func (w *world) target(f Fault) *agent {
	t := w.owner.tree()
	if t == nil || f.Target == Anyone || f.Target == "" {
		return w.agents[f.Number%len(w.agents)]
	}
	stripe := f.Number % t.Stripes()
	if root, ok := t.Root(stripe); ok && f.Target == Root {
		return w.byID[stream.PeerID(root)]
	}
	var inner []tree.ID
	for id, depth := range t.Walk(stripe) {
		if depth > 0 && len(t.Children(id, stripe)) > 0 {
			inner = append(inner, id)
		}
	}
	if len(inner) == 0 {
		return nil
	}
	return w.byID[stream.PeerID(inner[f.Number%len(inner)])]
}

// RandomFaults returns faults for a simulation that takes about so long, by seed.
func RandomFaults(seed uint64, agents int, about time.Duration) []Fault {
	rng := rand.New(rand.NewPCG(seed, 0xfa))
	kinds := []Kind{Crash, Crash, Wipe, Stall, Slow, Split, OwnerDown, Down, LieBytes, LieIndex, LieUnasked, LieEpoch}
	targets := []Target{Anyone, Root, Inner, Inner}
	var faults []Fault
	for range 1 + rng.IntN(4) {
		f := Fault{Kind: kinds[rng.IntN(len(kinds))], At: time.Duration(rng.Int64N(int64(about))), Target: targets[rng.IntN(len(targets))], Number: rng.IntN(agents)}
		f.For = 100*time.Millisecond + time.Duration(rng.Int64N(int64(5*time.Second)))
		faults = append(faults, f)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return int(a.At - b.At) })
	return faults
}

func (f Fault) String() string {
	return fmt.Sprintf("%s of %s %d at %v for %v", f.Kind, f.Target, f.Number, f.At, f.For)
}
