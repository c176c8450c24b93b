package tree

import (
	"cmp"
	"iter"
	"slices"
)

// Len returns the number of members.
func (t *Tree) Len() int { return len(t.nodes) }

// Stripes returns the number of stripes.
func (t *Tree) Stripes() int { return len(t.stripes) }

// Epoch returns the last epoch that was given out.
func (t *Tree) Epoch() Epoch { return t.epoch }

// Member returns a member with its role as it is now.
func (t *Tree) Member(id ID) (Member, bool) {
	if n := t.nodes[id]; n != nil {
		return n.Member, true
	}
	return Member{}, false
}

// Attachments returns the attachments of a member, by stripe.
func (t *Tree) Attachments(id ID) ([]Attachment, error) {
	n := t.nodes[id]
	if n == nil {
		return nil, t.unknown(id)
	}
	list := make([]Attachment, len(t.stripes))
	for i, s := range t.stripes {
		list[i] = s.attachment(&n.places[i])
	}
	return list, nil
}

// Root returns the member that holds the registry lease of a stripe; false if there are no members.
func (t *Tree) Root(stripe int) (ID, bool) {
	if s := t.stripe(stripe); s != nil && s.root != nil {
		return s.root.node.ID, true
	}
	return "", false
}

// Parent returns who feeds a member in a stripe, Registry if it is the root.
func (t *Tree) Parent(id ID, stripe int) (ID, bool) {
	p := t.place(id, stripe)
	if p == nil {
		return "", false
	}
	return t.stripes[stripe].attachment(p).Parent, true
}

// Children returns whom a member feeds in a stripe.
func (t *Tree) Children(id ID, stripe int) []ID {
	if p := t.place(id, stripe); p != nil {
		return ids(p.children)
	}
	return nil
}

// Standbys returns the children of a stripe's root in the order in which they would follow it (unless somebody of RoleSpare or
// RoleLeaf is drafted because the root is gone, or the root had several stripes because there are few members).
func (t *Tree) Standbys(stripe int) []ID {
	s := t.stripe(stripe)
	if s == nil || s.root == nil {
		return nil
	}
	return ids(slices.SortedFunc(slices.Values(s.root.children), t.compareStandbys))
}

// Backups returns whom a member asks, in this order, when its parent in a stripe is in trouble, before the registry: its
// grandparent (below the root, the first standby), then somebody in another part of the tree; rather nobody who is slow or was blamed. Changes carry the backups
// of the members that they move; those of others change too, so an owner sends them again from time to time.
func (t *Tree) Backups(id ID, stripe int) []ID {
	if p := t.place(id, stripe); p != nil {
		return t.backups(nil, t.stripes[stripe], p)
	}
	return nil
}

// Walk yields the members of a stripe with their depth, every one before its children.
func (t *Tree) Walk(stripe int) iter.Seq2[ID, int] {
	return func(yield func(ID, int) bool) {
		if s := t.stripe(stripe); s != nil && s.root != nil {
			s.root.walk(0, func(p *place, depth int) bool { return yield(p.node.ID, depth) })
		}
	}
}

// Height returns the depth of a stripe's deepest member; the root has depth 0.
func (t *Tree) Height(stripe int) int {
	height := 0
	for _, depth := range t.Walk(stripe) {
		height = max(height, depth)
	}
	return height
}

func (p *place) walk(depth int, yield func(*place, int) bool) bool {
	if !yield(p, depth) {
		return false
	}
	for _, c := range p.children {
		if !c.walk(depth+1, yield) {
			return false
		}
	}
	return true
}

// maxBackups is how many backups a member has at most.
const maxBackups = 2

// backups appends the backups of p to list.
func (t *Tree) backups(list []ID, s *stripe, p *place) []ID {
	parent := p.parent
	if parent == nil {
		return list
	}
	first := parent.parent
	if first == nil {
		first = slices.MinFunc(parent.children, t.compareStandbys)
	}
	if first == p { // the first standby will be the root
		first = nil
	} else {
		list = append(list, first.node.ID)
	}
	if second := t.elsewhere(s, p, first); second != nil {
		list = append(list, second.node.ID)
	}
	return list
}

// elsewhere returns somebody whom the loss of p's parent does not concern (or, if that is the root, whom p does not feed),
// apart from one: an ancestor of p in another stripe, to whom p has a connection already, or else a sibling of the
// parent (of p, if the parent is the root).
func (t *Tree) elsewhere(s *stripe, p, apart *place) *place {
	var poor *place // if there is nobody better
	avoid := p.parent
	if avoid == s.root {
		avoid = p
	}
	for i := range len(t.stripes) - 1 {
		other := (s.number + 1 + i) % len(t.stripes)
		for q := p.node.places[other].parent; q != nil; q = q.parent {
			if c := &q.node.places[s.number]; c != p.parent && c != apart && !c.below(avoid) {
				if !c.node.machine.avoided() {
					return c
				}
				poor = cmp.Or(poor, c)
			}
		}
	}
	for _, c := range avoid.parent.children {
		if c != avoid && c != apart {
			if !c.node.machine.avoided() {
				return c
			}
			poor = cmp.Or(poor, c)
		}
	}
	return poor
}

func (t *Tree) stripe(number int) *stripe {
	if number < 0 || number >= len(t.stripes) {
		return nil
	}
	return t.stripes[number]
}

func (t *Tree) place(id ID, stripe int) *place {
	n := t.nodes[id]
	if n == nil || t.stripe(stripe) == nil {
		return nil
	}
	return &n.places[stripe]
}

func ids(places []*place) []ID {
	list := make([]ID, len(places))
	for i, p := range places {
		list[i] = p.node.ID
	}
	return list
}
