package tree

import "slices"

// bench lists the members of a role: those with a place in a group, and those without.
type bench struct{ grouped, idle []*node }

func (b *bench) add(n *node) {
	list := &b.idle
	if n.grouped() {
		list = &b.grouped
	}
	n.seat = len(*list)
	*list = append(*list, n)
}

// remove takes a member out whose groups are as they were when it was added.
func (b *bench) remove(n *node) {
	list := &b.idle
	if n.grouped() {
		list = &b.grouped
	}
	last := (*list)[len(*list)-1]
	(*list)[n.seat], last.seat = last, n.seat
	*list = (*list)[:len(*list)-1]
}

func (b *bench) len() int { return len(b.grouped) + len(b.idle) }

// need returns how many members must be in groups so that nobody has more than most children.
func (t *Tree) need(most int) int {
	k, edges := len(t.stripes), len(t.nodes)-1 // edges of one stripe
	switch {
	case edges < 0:
		return 0
	case edges == 0:
		return 1
	case edges <= most: // fewer members than stripes will do, each the only one in several groups
		return ceilDiv(k, min(k, most/edges))
	default:
		return k * ceilDiv(edges, most)
	}
}

// wanted returns how many members of RoleSpare and RoleLeaf must be in groups.
func (t *Tree) wanted() (spare, leaf int) {
	ready := t.roles[RoleAny].len()
	spares := t.roles[RoleSpare].len()
	spare = min(max(t.need(t.arity+1)-ready, 0), spares)
	leaf = min(max(t.need(2*t.arity)-ready-spares, 0), t.roles[RoleLeaf].len())
	return spare, leaf
}

// draft puts members into groups who would rather be leaves, as many as are needed.
func (t *Tree) draft() {
	spare, leaf := t.wanted()
	for b := &t.roles[RoleSpare]; len(b.grouped) < spare; {
		t.enlist(leastBurdened(b.idle))
	}
	for b := &t.roles[RoleLeaf]; len(b.grouped) < leaf; {
		t.enlist(leastBurdened(b.idle))
	}
}

// release lets those go who are not needed.
func (t *Tree) release() {
	spare, leaf := t.wanted()
	for b := &t.roles[RoleLeaf]; len(b.grouped) > leaf; {
		t.discharge(b.grouped[len(b.grouped)-1])
	}
	for b := &t.roles[RoleSpare]; len(b.grouped) > spare; {
		t.discharge(b.grouped[len(b.grouped)-1])
	}
}

func (t *Tree) discharge(n *node) {
	t.roles[n.Role].remove(n)
	t.dismiss(n)
	t.roles[n.Role].add(n)
}

// leastBurdened looks at a few, so that it takes constant time.
func leastBurdened(nodes []*node) *node {
	return slices.MinFunc(nodes[:min(len(nodes), 16)], func(a, b *node) int { return a.machine.load - b.machine.load })
}

// enlist gives n, a member without, a place in a group.
func (t *Tree) enlist(n *node) {
	t.roles[n.Role].remove(n)
	t.grouped++
	switch {
	case t.grouped == 1:
		for _, s := range t.stripes {
			s.insert(&n.places[s.number])
		}
	case t.grouped <= len(t.stripes):
		t.share(n)
	default:
		s := t.smallest(n.places[0].zone)
		s.insert(&n.places[s.number])
	}
	t.roles[n.Role].add(n)
}

// share gives n groups of those who are alone in several, until n has as many as they.
func (t *Tree) share(n *node) {
	for {
		s := slices.MaxFunc(t.stripes, func(a, b *stripe) int { return a.root.node.groups() - b.root.node.groups() })
		if s.root.node.groups()-n.groups() < 2 {
			return
		}
		s.succeed(s.root, &n.places[s.number])
	}
}

// succeed gives the place of root, who is alone in the group, to the leaf p.
func (s *stripe) succeed(root, p *place) {
	s.detach(p)
	s.replace(root, p)
	s.orphans = append(s.orphans, root)
}

// smallest returns the stripe with the smallest group; of several the one whose group has fewest members of the zone.
func (t *Tree) smallest(zone int32) *stripe {
	return slices.MinFunc(t.stripes, func(a, b *stripe) int {
		if a.size != b.size {
			return a.size - b.size
		}
		return a.zoned(zone) - b.zoned(zone)
	})
}

// dismiss takes n out of its groups.
func (t *Tree) dismiss(n *node) {
	t.grouped--
	for _, s := range t.stripes {
		p := &n.places[s.number]
		switch {
		case p.level == Leaf:
		case s.size > 1:
			s.demote(p)
		case t.grouped == 0: // the last member of all
			s.vacate(p)
		default:
			s.succeed(p, t.successor(s))
		}
	}
	t.balance()
}

// successor frees the one who follows the root of s, who is alone in the group: somebody of a larger group if there is one,
// else somebody who is in few.
func (t *Tree) successor(s *stripe) *place {
	s.adopt()
	p := slices.MinFunc(s.root.children, t.compareStandbys)
	for _, other := range t.stripes {
		if q := &p.node.places[other.number]; q.level != Leaf && other.size > 1 {
			other.demote(q)
		}
	}
	return p
}

// compareStandbys orders the children of a root: the first is who follows the root.
func (t *Tree) compareStandbys(p, q *place) int {
	if a, b := t.reluctance(p), t.reluctance(q); a != b {
		return a - b
	}
	if p.fuller(q) {
		return -1
	}
	return 1
}

// reluctance ranks the children of a root: the stripe's own group, larger groups, those who are in few groups, leaves.
func (t *Tree) reluctance(p *place) int {
	if p.level != Leaf {
		return -1
	}
	for _, s := range t.stripes {
		if p.node.places[s.number].level != Leaf && s.size > 1 {
			return 0
		}
	}
	if groups := p.node.groups(); groups > 0 {
		return groups
	}
	return len(t.stripes) + 1
}

// balance keeps the sizes of the groups within one of each other.
func (t *Tree) balance() {
	for {
		small := slices.MinFunc(t.stripes, func(a, b *stripe) int { return a.size - b.size })
		large := slices.MaxFunc(t.stripes, func(a, b *stripe) int { return a.size - b.size })
		if large.size-small.size < 2 {
			return
		}
		p := large.levels[large.bottom()].fullest[0]
		large.demote(p)
		small.insert(&p.node.places[small.number])
	}
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
