package tree

import (
	"fmt"
	"slices"
)

// CheckIndexes tells whether all that is derived from the edges is true of them.
func (t *Tree) CheckIndexes() error {
	for _, n := range t.nodes {
		children := 0
		for i := range n.places {
			p := &n.places[i]
			children += len(p.children)
			if err := t.stripes[i].checkIndexes(p); err != nil {
				return fmt.Errorf("stripe %d: %s: %w", i, n.ID, err)
			}
		}
		if n.machine.load != children {
			return fmt.Errorf("%s has %d children, load %d", n.ID, children, n.machine.load)
		}
		if b := t.roles[n.Role]; n.seat >= len(b.idle) || b.idle[n.seat] != n {
			if n.seat >= len(b.grouped) || b.grouped[n.seat] != n || !n.grouped() {
				return fmt.Errorf("%s is on no bench", n.ID)
			}
		}
	}
	return nil
}

func (s *stripe) checkIndexes(p *place) error {
	foreign := p.level == Leaf && p.parent != nil && p.parent.zone != p.zone
	if got := slices.Contains(s.foreign.all, p); got != foreign {
		return fmt.Errorf("foreign: %t, listed: %t", foreign, got)
	}
	if foreign && !slices.Contains(s.foreign.zones[p.parent.zone], p) {
		return fmt.Errorf("not listed as foreign in zone %d", p.parent.zone)
	}
	for degree, set := range s.degrees {
		want := p.level != Leaf && degree == len(p.children)
		if got := slices.Contains(set.all, p); got != want {
			return fmt.Errorf("%d children, listed with %d: %t", len(p.children), degree, got)
		}
	}
	for i, l := range s.levels {
		if slices.Contains(l.roomy.all, p) != (int32(i) == p.level && p.interior() < s.arity) {
			return fmt.Errorf("level %d, %d children in the group, wrong in roomy of %d", p.level, p.interior(), i)
		}
	}
	if p.level != Leaf {
		f := s.levels[p.level].fullest
		if f[p.rank] != p || p.rank > 0 && p.fuller(f[(p.rank-1)/2]) {
			return fmt.Errorf("rank %d of level %d is wrong", p.rank, p.level)
		}
	}
	return nil
}

// ZonesKept is how many zones have a number.
func (t *Tree) ZonesKept() int { return len(t.zones.zones) }
