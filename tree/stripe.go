package tree

import "slices"

// stripe is the tree of one stripe: the group's members by levels, all levels but the last one full, and everybody else
// as a leaf below a member of the group.
type stripe struct {
	number  int
	arity   int
	root    *place
	levels  []level
	size    int        // members of the group
	inZone  []int      // members of the group by zone
	degrees []zonedSet // members of the group by their number of children
	foreign zonedSet   // leaves with a parent in another zone, by the zone of the parent

	// Of the event under way.
	orphans []*place // leaves that may need a parent
	touched []touch
}

type level struct {
	width   int      // how many places it has
	fullest fullest  // its members
	roomy   zonedSet // those that can have another child in the next level
}

// touch is what a place was before the event.
type touch struct {
	place    *place
	parent   *place
	level    int32
	attached bool
}

func newStripe(number, arity int) *stripe {
	return &stripe{number: number, arity: arity, foreign: zonedSet{kind: setForeign}}
}

func (s *stripe) attachment(p *place) Attachment {
	a := Attachment{Child: p.node.ID, Stripe: s.number, Level: int(p.level), Epoch: p.epoch}
	if p.parent != nil {
		a.Parent = p.parent.node.ID
	}
	return a
}

func (s *stripe) bottom() int32 { return int32(len(s.levels)) - 1 }

func (s *stripe) attached(p *place) bool { return p.parent != nil || p == s.root }

func (s *stripe) touch(p *place) {
	if !p.touched {
		p.touched = true
		s.touched = append(s.touched, touch{p, p.parent, p.level, s.attached(p)})
	}
}

// attach gives p a parent; nil is the registry.
func (s *stripe) attach(p, parent *place) {
	s.touch(p)
	p.parent = parent
	if parent == nil {
		s.root = p
		return
	}
	if parent.children == nil {
		parent.children = make([]*place, 0, s.arity)
	}
	parent.children = append(parent.children, p)
	parent.node.machine.load++
	s.index(parent)
	s.indexForeign(p)
}

func (s *stripe) detach(p *place) {
	if !s.attached(p) {
		return
	}
	s.touch(p)
	parent := p.parent
	if parent == nil {
		s.root = nil
		return
	}
	i := slices.Index(parent.children, p)
	parent.children = slices.Delete(parent.children, i, i+1)
	parent.node.machine.load--
	p.parent = nil
	s.index(parent)
	s.indexForeign(p)
}

// index keeps the sets true after the children of p have changed.
func (s *stripe) index(p *place) {
	if p.level == Leaf {
		return
	}
	for len(s.degrees) <= len(p.children) {
		s.degrees = append(s.degrees, zonedSet{kind: setDegree})
	}
	if degree := int32(len(p.children)); p.handles[setDegree] == (handle{}) || p.degree != degree {
		s.degrees[p.degree].remove(p)
		p.degree = degree
		s.degrees[degree].add(p, p.zone)
	}
	roomy := &s.levels[p.level].roomy
	if p.interior() >= s.arity {
		roomy.remove(p)
	} else if p.handles[setRoomy] == (handle{}) {
		roomy.add(p, p.zone)
	}
}

// indexForeign keeps the set true after the parent of p has changed.
func (s *stripe) indexForeign(p *place) {
	s.foreign.remove(p)
	if p.level == Leaf && p.parent != nil && p.parent.zone != p.zone {
		s.foreign.add(p, p.parent.zone)
	}
}

// enter makes p, a leaf without a parent, a member of the group.
func (s *stripe) enter(p *place, at int32) {
	s.touch(p)
	if at > s.bottom() {
		width := 1
		if at > 0 {
			width = s.levels[at-1].width * s.arity
		}
		s.levels = append(s.levels, level{width: width, roomy: zonedSet{kind: setRoomy}})
	}
	p.level = at
	s.levels[at].fullest.add(p)
	s.size++
	if missing := int(p.zone) + 1 - len(s.inZone); missing > 0 {
		s.inZone = append(s.inZone, make([]int, missing)...)
	}
	s.inZone[p.zone]++
	s.index(p)
}

// exit makes p, a member of the group without a parent, a leaf.
func (s *stripe) exit(p *place) {
	s.degrees[p.degree].remove(p)
	s.levels[p.level].roomy.remove(p)
	s.levels[p.level].fullest.remove(p)
	p.level = Leaf
	s.size--
	s.inZone[p.zone]--
	for len(s.levels) > 0 && len(s.levels[s.bottom()].fullest) == 0 {
		s.levels = s.levels[:s.bottom()]
	}
}

// insert gives p a place in the last level. A leaf that has to go from there finds room below p.
func (s *stripe) insert(p *place) {
	s.detach(p)
	if s.size == 0 {
		s.enter(p, 0)
		s.attach(p, nil)
		return
	}
	at := s.bottom()
	if len(s.levels[at].fullest) == s.levels[at].width {
		at++
	}
	parent := s.levels[at-1].roomy.pick(p.zone)
	if len(parent.children) >= s.arity {
		s.orphan(parent.leafChild())
	}
	s.enter(p, at)
	s.attach(p, parent)
}

// vacate takes p out of the group and leaves it without a parent. A hole is filled from the last level.
func (s *stripe) vacate(p *place) {
	if p.level < s.bottom() {
		m := s.mover(p)
		s.vacate(m)
		s.replace(p, m)
		return
	}
	s.detach(p)
	s.exit(p)
	for len(p.children) > 0 {
		s.orphan(p.children[0])
	}
}

// demote makes p a leaf: where it is, if it is in the last level.
func (s *stripe) demote(p *place) {
	parent := p.parent
	if p.level < s.bottom() {
		parent = nil
	}
	s.vacate(p)
	if parent == nil {
		s.orphans = append(s.orphans, p)
		return
	}
	s.attach(p, parent)
}

// mover chooses who takes the place of p, which is above the last level. For the root it is the fullest of its children in the
// group. For others it is the fullest member of the last level, or if these hold little, as newcomers do, the fullest of the
// level above, whom somebody of the last level follows.
func (s *stripe) mover(p *place) *place {
	if p.parent == nil {
		return s.heir()
	}
	zone, above := p.parent.zone, s.bottom()-1
	m := s.levels[s.bottom()].fullest.first(zone)
	if p.level < above {
		if q := s.levels[above].fullest.first(zone); q.held/2 > m.held {
			return q
		}
	}
	return m
}

// heir is who follows the root, nil if nobody else is in the group.
func (s *stripe) heir() *place {
	var best *place
	for _, c := range s.root.children {
		if c.level != Leaf && (best == nil || c.fuller(best)) {
			best = c
		}
	}
	return best
}

// replace gives the place of p, its parent and its children to m, which is a leaf without a parent, and leaves p as one.
func (s *stripe) replace(p, m *place) {
	s.touch(p)
	s.enter(m, p.level)
	m.parent, p.parent = p.parent, nil
	if m.parent == nil {
		s.root = m
	} else {
		m.parent.children[slices.Index(m.parent.children, p)] = m
	}
	m.children, p.children = p.children, m.children
	m.node.machine.load += len(m.children)
	p.node.machine.load -= len(m.children)
	for _, c := range m.children {
		s.touch(c)
		c.parent = m
		s.indexForeign(c)
	}
	s.index(m)
	s.exit(p)
}

func (s *stripe) orphan(p *place) {
	s.detach(p)
	s.orphans = append(s.orphans, p)
}

// adopt finds parents for the orphans.
func (s *stripe) adopt() {
	for _, p := range s.orphans {
		if !s.attached(p) && !p.node.gone {
			s.hang(p)
		}
	}
	s.orphans = s.orphans[:0]
}

// hang attaches a leaf below one that has fewest children. If that would leave its zone, it takes the place of a leaf that is a stranger in this zone.
func (s *stripe) hang(p *place) {
	zone, parent := p.zone, s.degrees[s.least()].pick(p.zone)
	if parent.zone != zone {
		if f := s.foreign.in(zone); f != nil {
			host := f.parent
			s.detach(f)
			s.attach(p, host)
			p = f
		}
	}
	s.attach(p, parent)
}

// spread moves leaves until more than arity children are no more than needed, and differ by one at most.
func (s *stripe) spread() {
	for s.size > 0 {
		least, most := s.least(), s.most()
		if most <= s.arity || most-least < 2 {
			return
		}
		p := s.degrees[most].all[0].leafChild()
		s.detach(p)
		s.attach(p, s.degrees[least].pick(p.zone))
	}
}

func (s *stripe) least() int {
	return slices.IndexFunc(s.degrees, func(z zonedSet) bool { return len(z.all) > 0 })
}

func (s *stripe) most() int {
	i := len(s.degrees) - 1
	for len(s.degrees[i].all) == 0 {
		i--
	}
	return i
}

func (s *stripe) setHeld(p *place, held int) {
	p.held = held
	if p.level != Leaf {
		s.levels[p.level].fullest.fix(p)
	}
}

// zoned counts the members of the group in the zone.
func (s *stripe) zoned(zone int32) int {
	if int(zone) < len(s.inZone) {
		return s.inZone[zone]
	}
	return 0
}
