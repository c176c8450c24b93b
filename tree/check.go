package tree

import (
	"fmt"
	"slices"
)

// Check returns the first violation of what must hold between events, and nil if all is well. It looks at every member.
func (t *Tree) Check() error {
	if err := t.checkGroups(); err != nil {
		return err
	}
	epochs := make(map[Epoch]*place, len(t.nodes)*len(t.stripes))
	for _, s := range t.stripes {
		if err := t.checkStripe(s, epochs); err != nil {
			return fmt.Errorf("stripe %d: %w", s.number, err)
		}
	}
	return nil
}

// checkGroups: groups have the same size within one, nobody is in two of them unless there are too few, and no more members
// are drafted into them than are needed.
func (t *Tree) checkGroups() error {
	var grouped [3]int
	least, most, total := len(t.stripes), 0, 0
	for id, n := range t.nodes {
		if id != n.ID || n.gone {
			return fmt.Errorf("%s is listed as %s", n.ID, id)
		}
		if groups := n.groups(); groups > 0 {
			grouped[n.Role]++
			least, most, total = min(least, groups), max(most, groups), total+groups
		}
	}
	members := grouped[RoleAny] + grouped[RoleSpare] + grouped[RoleLeaf]
	spare, leaf := t.wanted()
	switch {
	case members != t.grouped:
		return fmt.Errorf("%d members in groups, counted %d", members, t.grouped)
	case grouped[RoleAny] != t.roles[RoleAny].len() || grouped[RoleSpare] != spare || grouped[RoleLeaf] != leaf:
		return fmt.Errorf("%v members in groups by role, want %d, %d, %d", grouped, t.roles[RoleAny].len(), spare, leaf)
	case members > 0 && total != max(members, len(t.stripes)):
		return fmt.Errorf("%d members have %d places in groups", members, total)
	case most-least > 1:
		return fmt.Errorf("a member is in %d groups, another in %d", most, least)
	}
	sizes := make([]int, len(t.stripes))
	for i, s := range t.stripes {
		sizes[i] = s.size
	}
	if slices.Max(sizes)-slices.Min(sizes) > 1 {
		return fmt.Errorf("groups have %v members", sizes)
	}
	return nil
}

// checkStripe: all members hang together below one root, the group's levels are full but for the last, and limits hold.
func (t *Tree) checkStripe(s *stripe, epochs map[Epoch]*place) error {
	if (s.root == nil) != (len(t.nodes) == 0) {
		return fmt.Errorf("has root: %t, members: %d", s.root != nil, len(t.nodes))
	}
	if s.root == nil {
		return nil
	}
	if s.root.parent != nil {
		return fmt.Errorf("root %s has a parent", s.root.node.ID)
	}
	var err error
	reached := 0
	levels := make([]int, len(s.levels))
	s.root.walk(0, func(p *place, depth int) bool {
		if reached++; reached > len(t.nodes) {
			err = fmt.Errorf("more than %d members below the root", len(t.nodes))
		} else if err = t.checkPlace(s, p, depth); err == nil {
			if other := epochs[p.epoch]; other != nil {
				err = fmt.Errorf("%s and %s have epoch %v", p.node.ID, other.node.ID, p.epoch)
			}
			epochs[p.epoch] = p
		}
		if p.level != Leaf && err == nil {
			levels[p.level]++
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	if reached != len(t.nodes) {
		return fmt.Errorf("%d of %d members below the root", reached, len(t.nodes))
	}
	return s.checkLevels(levels)
}

func (s *stripe) checkLevels(members []int) error {
	size := 0
	for i, n := range members {
		size += n
		if width := s.levels[i].width; n == 0 || n > width || n < width && i < len(members)-1 {
			return fmt.Errorf("level %d of %d has %d members of %d", i, len(members), n, width)
		}
	}
	if size != s.size {
		return fmt.Errorf("group has %d members, counted %d", size, s.size)
	}
	return nil
}

// checkPlace checks what concerns one member.
func (t *Tree) checkPlace(s *stripe, p *place, depth int) error {
	n := p.node
	switch {
	case t.nodes[n.ID] != n:
		return fmt.Errorf("%s is in the stripe, but no member", n.ID)
	case p.level != Leaf && (int(p.level) != depth || p.level > s.bottom()):
		return fmt.Errorf("%s of level %d has depth %d of %d", n.ID, p.level, depth, s.bottom())
	case depth > len(s.levels) || depth > t.heightLimit():
		return fmt.Errorf("%s has depth %d, limit %d, levels %d", n.ID, depth, t.heightLimit(), len(s.levels))
	case p.level == Leaf && len(p.children) > 0:
		return fmt.Errorf("leaf %s has children", n.ID)
	case len(p.children) > t.degreeLimit(s):
		return fmt.Errorf("%s has %d children, limit %d", n.ID, len(p.children), t.degreeLimit(s))
	case p.interior() > t.arity:
		return fmt.Errorf("%s has %d children in the group", n.ID, p.interior())
	case p.epoch.Compare(t.epoch) > 0:
		return fmt.Errorf("%s has epoch %v after the tree's %v", n.ID, p.epoch, t.epoch)
	}
	for _, c := range p.children {
		if c.parent != p {
			return fmt.Errorf("child %s of %s has another parent", c.node.ID, n.ID)
		}
	}
	return t.checkBackups(s, p)
}

func (t *Tree) checkBackups(s *stripe, p *place) error {
	list := t.backups(nil, s, p)
	for i, id := range list {
		b := t.place(id, s.number)
		if b == nil || b == p.parent || b.below(p) || slices.Contains(list[:i], id) {
			return fmt.Errorf("%s has backups %v", p.node.ID, list)
		}
	}
	if len(list) == 0 && p.parent != nil && (p.parent != s.root || len(s.root.children) > 1) {
		return fmt.Errorf("%s has no backup", p.node.ID)
	}
	return nil
}

// heightLimit is ceil(log n) + 1 to the base of the arity.
func (t *Tree) heightLimit() int {
	height := 1
	for reach := 1; reach < len(t.nodes); reach *= t.arity {
		height++
	}
	return height
}

// degreeLimit is the arity, or what the members of the group must have at least so that all others find a parent.
func (t *Tree) degreeLimit(s *stripe) int { return max(t.arity, ceilDiv(len(t.nodes)-1, s.size)) }
