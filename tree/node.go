package tree

// node is a member.
type node struct {
	Member
	machine      *machine
	places       []place         // by stripe
	seat         int             // index in the list of its bench
	trying       map[ID]attempts // whom it tries in vain to reach
	gone, failed bool
}

// grouped tells whether the member has a place in a group.
func (n *node) grouped() bool { return n.groups() > 0 }

// groups counts the groups of the member: one at most, unless there are fewer members to group than stripes.
func (n *node) groups() int {
	count := 0
	for i := range n.places {
		if n.places[i].level != Leaf {
			count++
		}
	}
	return count
}

// place is a member's position in one stripe.
type place struct {
	node     *node
	parent   *place // nil: the root, or without a parent in the midst of an event
	children []*place
	zone     int32 // Member.Zone in the zone table
	level    int32 // in the stripe's group, or Leaf
	rank     int32 // index in level.fullest
	degree   int32 // index of its set in stripe.degrees
	handles  [setKinds]handle
	touched  bool // listed in stripe.touched
	held     int  // blocks of the stripe that the member reported
	seq      uint64
	epoch    Epoch
}

// interior counts the children that belong to the stripe's group.
func (p *place) interior() int {
	count := 0
	for _, c := range p.children {
		if c.level != Leaf {
			count++
		}
	}
	return count
}

// leafChild returns the last child that is a leaf, rather one from another zone; nil if there is none.
func (p *place) leafChild() *place {
	var found *place
	for _, c := range p.children {
		if c.level == Leaf && (found == nil || found.zone == p.zone || c.zone != p.zone) {
			found = c
		}
	}
	return found
}

// below tells whether p is top or in the subtree of top. Levels say when to stop climbing.
func (p *place) below(top *place) bool {
	if top.level == Leaf {
		return p == top
	}
	for p.level == Leaf || p.level > top.level {
		p = p.parent
	}
	return p == top
}

// fuller orders places by what they hold, then by seniority.
func (p *place) fuller(q *place) bool {
	if p.held != q.held {
		return p.held > q.held
	}
	return p.seq < q.seq
}

// children counts the children in all stripes.
func (n *node) children() int {
	count := 0
	for i := range n.places {
		count += len(n.places[i].children)
	}
	return count
}
