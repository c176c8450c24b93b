package tree

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// A Snapshot is the whole state of a tree: what its owner keeps, and what draws it. An owner that stores members one by one
// writes those that an event's changes name, and their role when it sets it.
type Snapshot struct {
	Stripes int      `json:"stripes"`
	Epoch   Epoch    `json:"epoch"`
	Members []Placed `json:"members"` // by ID
}

// Placed is a member with its places, by stripe.
type Placed struct {
	Member
	Held        []int        `json:"held"` // blocks that it reported
	Attachments []Attachment `json:"attachments"`
}

// Snapshot returns a copy of the state.
func (t *Tree) Snapshot() Snapshot {
	snap := Snapshot{Stripes: len(t.stripes), Epoch: t.epoch, Members: make([]Placed, 0, len(t.nodes))}
	for _, id := range slices.Sorted(maps.Keys(t.nodes)) {
		snap.Members = append(snap.Members, t.placed(t.nodes[id]))
	}
	return snap
}

// Placed returns a member with its places, for an owner that stores members one by one.
func (t *Tree) Placed(id ID) (Placed, error) {
	n := t.nodes[id]
	if n == nil {
		return Placed{}, t.unknown(id)
	}
	return t.placed(n), nil
}

func (t *Tree) placed(n *node) Placed {
	m := Placed{Member: n.Member, Held: make([]int, len(t.stripes)), Attachments: make([]Attachment, len(t.stripes))}
	for i, s := range t.stripes {
		m.Held[i], m.Attachments[i] = n.places[i].held, s.attachment(&n.places[i])
	}
	return m
}

// Restore makes a tree of a snapshot. The term must be new to the tree, and higher than any before (an election's revision is
// one), because the last epochs of the former owner may be missing in the snapshot. A snapshot that is not a valid
// tree is refused with ErrInvalid.
func Restore(snap Snapshot, term uint64) (*Tree, error) {
	if term <= snap.Epoch.Term {
		return nil, fmt.Errorf("restore of term %d in term %d: %w", snap.Epoch.Term, term, ErrStale)
	}
	t, err := New(Config{Stripes: snap.Stripes, Epoch: snap.Epoch})
	if err != nil {
		return nil, err
	}
	for _, m := range snap.Members {
		if err := t.restoreMember(m); err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
	}
	for _, s := range t.stripes {
		if err := t.restoreStripe(s, snap.Members); err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
	}
	for _, n := range t.nodes {
		if n.grouped() {
			t.grouped++
		}
	}
	for _, m := range snap.Members {
		t.roles[m.Role].add(t.nodes[m.ID])
	}
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("restore: %w: %w", err, ErrInvalid)
	}
	t.epoch = Epoch{Term: term}
	return t, nil
}

func (t *Tree) restoreMember(m Placed) error {
	if err := m.Member.validate(); err != nil {
		return err
	}
	if t.nodes[m.ID] != nil {
		return fmt.Errorf("%s is listed twice: %w", m.ID, ErrInvalid)
	}
	if err := t.validateHeld(m.ID, m.Held); err != nil {
		return err
	}
	if len(m.Attachments) != len(t.stripes) {
		return fmt.Errorf("%s has %d attachments: %w", m.ID, len(m.Attachments), ErrInvalid)
	}
	n := t.node(m.Member, &machine{})
	for i, a := range m.Attachments {
		if a.Child != m.ID || a.Stripe != i || a.Level < Leaf {
			return fmt.Errorf("%s has attachment %+v: %w", m.ID, a, ErrInvalid)
		}
		n.places[i].held, n.places[i].epoch = m.Held[i], a.Epoch
	}
	return nil
}

// restoreStripe gives all members their places: first those of the group, from the top, then the edges.
func (t *Tree) restoreStripe(s *stripe, members []Placed) error {
	list := make([]Attachment, len(members))
	for i, m := range members {
		list[i] = m.Attachments[s.number]
	}
	slices.SortStableFunc(list, func(a, b Attachment) int { return cmp.Compare(a.Level, b.Level) })
	for _, a := range list {
		if a.Level > len(s.levels) {
			return fmt.Errorf("nobody is in level %d of stripe %d: %w", len(s.levels), s.number, ErrInvalid)
		}
		if a.Level != Leaf {
			s.enter(t.place(a.Child, s.number), int32(a.Level))
		}
	}
	for _, a := range list {
		parent := t.place(a.Parent, s.number) // whose children are counted here, because attach looks at all of them
		if a.Parent != Registry && (parent == nil || parent.level == Leaf || len(parent.children) == 2*t.arity) {
			return fmt.Errorf("%s cannot feed %s in stripe %d: %w", a.Parent, a.Child, s.number, ErrInvalid)
		}
		s.attach(t.place(a.Child, s.number), parent)
	}
	for _, was := range s.touched {
		was.place.touched = false
	}
	s.touched = s.touched[:0]
	return nil
}
