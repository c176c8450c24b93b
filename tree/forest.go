package tree

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// ForestConfig is what a forest is made with.
type ForestConfig struct {
	// Stripes is the number of stripes of all trees: 1, 2 or 4; 0 means 2.
	Stripes int
	// Budget is how many children a machine may feed in all trees together if it has no Budget of its own; 0 means 64.
	Budget int
	// Epoch is one that every epoch of every tree comes after.
	Epoch Epoch
}

// A Machine is where members run, at most one for each image.
type Machine struct {
	ID        ID
	Zone      string // of members that join from now on
	Budget    int    // children that it may feed; 0: as the forest's configuration says
	Elsewhere int    // children that it feeds in trees of other owners
	Draining  bool   // is about to leave
	// Uplink is how many bytes per second it fed while children had to wait for more; 0: none had to of late. Waiting are those who
	// had to: if none of them could take more, they were slow and not the machine. Without any, it is the rate of the uplink.
	Uplink  int64
	Waiting []ID
	// Sent and Received are the most bytes per second that its links carried of late; 0: not known.
	Sent, Received int64
}

// absurd is more than any number of children or bytes per second; sums of such numbers do not overflow.
const absurd = 1 << 40

func (m Machine) validate() error {
	least := min(int64(m.Budget), int64(m.Elsewhere), m.Uplink, m.Sent, m.Received)
	most := max(int64(m.Budget), int64(m.Elsewhere), m.Uplink, m.Sent, m.Received)
	if m.ID == Registry || least < 0 || most > absurd {
		return fmt.Errorf("machine %+v: %w", m, ErrInvalid)
	}
	return nil
}

// machine is a Machine with its members. Those of a tree without a forest have a machine each.
type machine struct {
	Machine
	load     int  // children in all trees and stripes
	slow     bool // its uplink is
	strikes  int  // heartbeats in a row that say so
	heard    bool // a heartbeat came since machines were compared last
	blamed   bool // is of no use to a machine that it fed
	accused  bool // had another machine blamed
	sentence int  // heartbeats since the first of these
	queued   bool
	nodes    map[string]*node // by image
}

// A Forest owns trees of many images, and sees to it that no machine feeds too many children in all of them together: a
// machine without budget joins as RoleSpare, one that is slow, blamed or draining as RoleLeaf, and Step corrects the roles of those
// that became so later. Where the members of an image have not budget enough among them, the budget gives way, not the tree.
// It is not safe for concurrent use.
type Forest struct {
	config   ForestConfig
	epoch    Epoch // the last of the trees that are gone
	trees    map[string]*Tree
	machines map[ID]*machine
	queue    []*machine // whose roles may be wrong
	measured bool       // something was, since machines were compared last
}

// An ImageChange is a Change of the tree of an image.
type ImageChange struct {
	Image string
	Change
}

// NewForest returns a forest without machines.
func NewForest(c ForestConfig) (*Forest, error) {
	tree, err := Config{Stripes: c.Stripes, Epoch: c.Epoch}.validate()
	if err != nil {
		return nil, err
	}
	c.Stripes, c.Budget = tree.Stripes, cmp.Or(c.Budget, 64)
	if c.Budget < 0 {
		return nil, fmt.Errorf("budget of %d children: %w", c.Budget, ErrInvalid)
	}
	return &Forest{config: c, epoch: c.Epoch, trees: map[string]*Tree{}, machines: map[ID]*machine{}}, nil
}

// SetMachine adds a machine or says how it is now, with each of its heartbeats. Step does what follows from that; a machine that
// has room in its budget again is not noticed earlier.
func (f *Forest) SetMachine(m Machine) error {
	if err := m.validate(); err != nil {
		return err
	}
	on := f.machines[m.ID]
	if on == nil {
		on = &machine{nodes: map[string]*node{}}
		f.machines[m.ID] = on
	}
	if m.Uplink != 0 || m.Uplink != on.Uplink || m.Sent != on.Sent || m.Received != on.Received {
		f.measured = true
	}
	on.Machine, on.heard = m, true
	on.serve()
	f.enqueue(on)
	return nil
}

// Join makes a machine a member of an image's tree.
func (f *Forest) Join(image string, id ID) ([]Change, error) {
	m := f.machines[id]
	if m == nil {
		return nil, f.unknown(id)
	}
	if m.nodes[image] != nil {
		return nil, fmt.Errorf("%s of %s: %w", id, image, ErrExists)
	}
	t := f.trees[image]
	if t == nil {
		var err error
		if t, err = New(Config{Stripes: f.config.Stripes, Epoch: f.epoch}); err != nil {
			return nil, err
		}
		f.trees[image] = t
	}
	role := RoleAny
	if m.shunned() {
		role = RoleLeaf
	} else if f.burden(m)+t.arity > f.budget(m) {
		role = RoleSpare
	}
	changes, err := t.join(Member{ID: id, Zone: m.Zone, Role: role}, m)
	if err != nil {
		return nil, err
	}
	m.nodes[image] = t.nodes[id]
	f.watch(changes)
	return changes, nil
}

// Leave takes a machine out of an image's tree.
func (f *Forest) Leave(image string, id ID) ([]Change, error) {
	m := f.machines[id]
	if m == nil || m.nodes[image] == nil {
		return nil, fmt.Errorf("%s of %s: %w", id, image, ErrUnknown)
	}
	return f.remove(image, m, false)
}

// Fail takes a machine out of all trees and forgets it.
func (f *Forest) Fail(id ID) ([]ImageChange, error) {
	changes, err := f.Expel(id)
	if err == nil {
		delete(f.machines, id)
	}
	return changes, err
}

// Expel takes a machine out of all trees, as one that failed, and goes on knowing it: it is expected to come back.
func (f *Forest) Expel(id ID) ([]ImageChange, error) {
	m := f.machines[id]
	if m == nil {
		return nil, f.unknown(id)
	}
	var all []ImageChange
	for _, image := range slices.Sorted(maps.Keys(m.nodes)) {
		changes, err := f.remove(image, m, true)
		if err != nil {
			return all, err
		}
		for _, c := range changes {
			all = append(all, ImageChange{image, c})
		}
	}
	return all, nil
}

func (f *Forest) remove(image string, m *machine, failed bool) ([]Change, error) {
	t := f.trees[image]
	changes, err := t.remove(m.ID, failed)
	if err != nil {
		return nil, err
	}
	delete(m.nodes, image)
	if t.Len() == 0 {
		delete(f.trees, image)
		if t.epoch.Compare(f.epoch) > 0 {
			f.epoch = t.epoch // a later tree of the image goes on from here
		}
	}
	f.watch(changes)
	return changes, nil
}

// Adopt takes over the tree of an image from its former owner; term is as for Restore. Members whose machine is not known get
// one that is known by its ID and zone, and feeds nobody for a time if it did not before.
func (f *Forest) Adopt(image string, snap Snapshot, term uint64) error {
	if f.trees[image] != nil {
		return fmt.Errorf("tree of %s: %w", image, ErrExists)
	}
	if snap.Stripes != f.config.Stripes {
		return fmt.Errorf("tree of %s: %d stripes, not %d: %w", image, snap.Stripes, f.config.Stripes, ErrInvalid)
	}
	t, err := Restore(snap, term)
	if err != nil {
		return fmt.Errorf("tree of %s: %w", image, err)
	}
	f.trees[image] = t
	for _, member := range snap.Members {
		if f.machines[member.ID] == nil {
			if err := f.SetMachine(Machine{ID: member.ID, Zone: member.Zone}); err != nil {
				return err
			}
			f.machines[member.ID].blamed = member.Role == RoleLeaf
		}
		m, n := f.machines[member.ID], t.nodes[member.ID]
		m.load += n.machine.load
		n.machine, m.nodes[image] = m, n
		f.enqueue(m)
	}
	return nil
}

// Tree returns the tree of an image, to ask and for reports; nil if it has no members.
func (f *Forest) Tree(image string) *Tree { return f.trees[image] }

// Images returns the images whose trees a machine is in.
func (f *Forest) Images(id ID) []string {
	if m := f.machines[id]; m != nil {
		return slices.Sorted(maps.Keys(m.nodes))
	}
	return nil
}

// Load returns how many children a machine feeds in all trees of the forest together.
func (f *Forest) Load(id ID) int {
	if m := f.machines[id]; m != nil {
		return m.load
	}
	return 0
}

// Step corrects the role of one machine in one tree. It returns false when there is nothing to correct.
func (f *Forest) Step() (image string, changes []Change, ok bool) {
	image, _, changes, ok = f.Correct()
	return image, changes, ok
}

// Correct is Step for an owner that stores members one by one: it also says whose role it was, which the changes need not name.
func (f *Forest) Correct() (image string, id ID, changes []Change, ok bool) {
	f.compare()
	for len(f.queue) > 0 {
		m := f.queue[0]
		if image, role, ok := f.misplaced(m); ok {
			changes, err := f.trees[image].SetRole(m.ID, role)
			if err == nil {
				f.watch(changes)
				return image, m.ID, changes, true
			}
		}
		m.queued = false
		f.queue = f.queue[1:]
	}
	return "", Registry, nil, false
}

// Drop forgets the tree of an image that another owner has taken over, and leaves its members' machines as they are.
func (f *Forest) Drop(image string) {
	t := f.trees[image]
	if t == nil {
		return
	}
	for _, n := range t.nodes {
		n.machine.load -= n.children()
		delete(n.machine.nodes, image)
	}
	delete(f.trees, image)
}

// misplaced finds a role that a machine should not have, and the one it should.
func (f *Forest) misplaced(m *machine) (image string, role Role, ok bool) {
	burden, budget := f.burden(m), f.budget(m)
	heaviest := 0
	for _, i := range slices.Sorted(maps.Keys(m.nodes)) {
		n, t := m.nodes[i], f.trees[i]
		switch {
		case m.shunned() && n.Role != RoleLeaf:
			return i, RoleLeaf, true
		case !m.shunned() && n.Role == RoleLeaf:
			return i, RoleSpare, true
		case n.Role == RoleSpare && burden+2*t.arity <= budget: // so that it does not soon become spare again
			return i, RoleAny, true
		case n.Role == RoleAny && burden > budget && n.children() > heaviest && t.dispensable():
			image, role, ok, heaviest = i, RoleSpare, true, n.children()
		}
	}
	return image, role, ok
}

// dispensable tells whether the tree can do without one of those who may be interior.
func (t *Tree) dispensable() bool { return t.roles[RoleAny].len() > t.need(t.arity+1) }

func (m *machine) shunned() bool { return m.avoided() || m.Draining }

func (f *Forest) budget(m *machine) int { return cmp.Or(m.Budget, f.config.Budget) }

// burden counts the children of a machine, where it may be interior at least as many as it must expect.
func (f *Forest) burden(m *machine) int {
	burden := m.Elsewhere
	for image, n := range m.nodes {
		children := n.children()
		if n.Role == RoleAny {
			children = max(children, f.trees[image].arity)
		}
		burden += children
	}
	return burden
}

// watch looks after the machines that the changes may have overburdened.
func (f *Forest) watch(changes []Change) {
	for _, c := range changes {
		if m := f.machines[c.Parent]; m != nil && m.load+m.Elsewhere > f.budget(m) {
			f.enqueue(m)
		}
	}
}

func (f *Forest) enqueue(m *machine) {
	if !m.queued {
		m.queued = true
		f.queue = append(f.queue, m)
	}
}

// Check returns the first violation of what must hold of the trees and of the sums over them.
func (f *Forest) Check() error {
	loads := map[*machine]int{}
	for image, t := range f.trees {
		if err := t.Check(); err != nil {
			return fmt.Errorf("tree of %s: %w", image, err)
		}
		if t.Len() == 0 {
			return fmt.Errorf("tree of %s has no members", image)
		}
		for id, n := range t.nodes {
			if n.machine != f.machines[id] || n.machine.nodes[image] != n {
				return fmt.Errorf("member %s of %s is not its machine's", id, image)
			}
			loads[n.machine] += n.children()
		}
	}
	for id, m := range f.machines {
		if m.load != loads[m] {
			return fmt.Errorf("%s has %d children, counted %d", id, loads[m], m.load)
		}
	}
	return nil
}

func (f *Forest) unknown(id ID) error { return fmt.Errorf("machine %q: %w", id, ErrUnknown) }
