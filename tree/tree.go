package tree

import (
	"cmp"
	"fmt"
	"slices"
)

// Config is what a tree is made with.
type Config struct {
	// Stripes is 1, 2 or 4; 0 means 2. Block i travels in stripe i mod Stripes.
	Stripes int
	// Epoch is one that every epoch of the tree comes after.
	Epoch Epoch
}

func (c Config) validate() (Config, error) {
	c.Stripes = cmp.Or(c.Stripes, 2)
	if c.Stripes != 1 && c.Stripes != 2 && c.Stripes != 4 {
		return c, fmt.Errorf("%d stripes, may be 1, 2 or 4: %w", c.Stripes, ErrInvalid)
	}
	return c, nil
}

// A Role says how much a member may be burdened.
type Role uint8

const (
	RoleAny   Role = iota // may be interior
	RoleSpare             // interior only if the others would get more than arity+1 children otherwise: busy with other trees
	RoleLeaf              // interior only if the others would get more than 2*arity children otherwise: slow or draining
)

var roleNames = []string{"any", "spare", "leaf"}

func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// MarshalText implements encoding.TextMarshaler.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Role) UnmarshalText(text []byte) error {
	i := slices.Index(roleNames, string(text))
	if i < 0 {
		return fmt.Errorf("role %q: %w", text, ErrInvalid)
	}
	*r = Role(i)
	return nil
}

// A Member is a machine that needs the image.
type Member struct {
	ID   ID     `json:"id"`
	Zone string `json:"zone,omitempty"` // edges inside a zone are preferred; "" is a zone like any other
	Role Role   `json:"role"`
}

func (m Member) validate() error {
	if m.ID == Registry {
		return fmt.Errorf("member without ID: %w", ErrInvalid)
	}
	if int(m.Role) >= len(roleNames) {
		return fmt.Errorf("member %s: %v: %w", m.ID, m.Role, ErrInvalid)
	}
	return nil
}

// A Tree is the topology of one image. It is not safe for concurrent use. Methods that change it return the changed
// attachments, at most one per member and stripe; a method that returns an error has changed nothing.
type Tree struct {
	arity   int
	epoch   Epoch
	joined  uint64 // members ever, the source of place.seq
	stripes []*stripe
	nodes   map[ID]*node
	zones   zoneTable
	roles   [3]bench
	grouped int // members with a place in a group
}

// New returns a tree without members.
func New(c Config) (*Tree, error) {
	c, err := c.validate()
	if err != nil {
		return nil, err
	}
	t := &Tree{arity: max(2, c.Stripes), epoch: c.Epoch, nodes: map[ID]*node{}, zones: newZoneTable()}
	for i := range c.Stripes {
		t.stripes = append(t.stripes, newStripe(i, t.arity))
	}
	return t, nil
}

// Join makes m a member. Joining twice is an error, ErrExists: where a member is, Attachments says.
func (t *Tree) Join(m Member) ([]Change, error) { return t.join(m, &machine{}) }

func (t *Tree) join(m Member, on *machine) ([]Change, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	if t.nodes[m.ID] != nil {
		return nil, fmt.Errorf("%s: %w", m.ID, ErrExists)
	}
	n := t.node(m, on)
	t.roles[m.Role].add(n)
	for _, s := range t.stripes {
		s.orphans = append(s.orphans, &n.places[s.number])
	}
	if m.Role == RoleAny {
		t.enlist(n)
	}
	t.draft()
	t.release()
	return t.settle(), nil
}

// Leave takes a member out that goes on feeding its children until they have other parents.
func (t *Tree) Leave(id ID) ([]Change, error) { return t.remove(id, false) }

// Fail takes a member out that feeds nobody any more.
func (t *Tree) Fail(id ID) ([]Change, error) { return t.remove(id, true) }

func (t *Tree) remove(id ID, failed bool) ([]Change, error) {
	n := t.nodes[id]
	if n == nil {
		return nil, t.unknown(id)
	}
	n.gone, n.failed = true, failed
	delete(t.nodes, id)
	t.roles[n.Role].remove(n)
	t.draft()
	if n.grouped() {
		t.dismiss(n)
	}
	for _, s := range t.stripes {
		s.detach(&n.places[s.number])
	}
	t.release()
	t.zones.drop(n.places[0].zone)
	return t.settle(), nil
}

// SetRole changes how much a member may be burdened.
func (t *Tree) SetRole(id ID, role Role) ([]Change, error) {
	n := t.nodes[id]
	if n == nil {
		return nil, t.unknown(id)
	}
	if err := (Member{ID: id, Role: role}).validate(); err != nil {
		return nil, err
	}
	t.roles[n.Role].remove(n)
	n.Role = role
	t.roles[role].add(n)
	if role == RoleAny && !n.grouped() {
		t.enlist(n)
	}
	t.draft()
	t.release()
	return t.settle(), nil
}

// Report says how many blocks a member holds of each stripe. It moves nobody; it decides who moves up later.
func (t *Tree) Report(id ID, held []int) error {
	n := t.nodes[id]
	if n == nil {
		return t.unknown(id)
	}
	if err := t.validateHeld(id, held); err != nil {
		return err
	}
	for _, s := range t.stripes {
		s.setHeld(&n.places[s.number], held[s.number])
	}
	return nil
}

func (t *Tree) validateHeld(id ID, held []int) error {
	if len(held) != len(t.stripes) {
		return fmt.Errorf("%s reports %d stripes of %d: %w", id, len(held), len(t.stripes), ErrInvalid)
	}
	if slices.Min(held) < 0 {
		return fmt.Errorf("%s reports %d blocks: %w", id, slices.Min(held), ErrInvalid)
	}
	return nil
}

// node makes a node of a new member; it has no place yet.
func (t *Tree) node(m Member, on *machine) *node {
	t.joined++
	n := &node{Member: m, machine: on, places: make([]place, len(t.stripes))}
	zone := t.zones.use(m.Zone)
	for i := range n.places {
		n.places[i] = place{node: n, zone: zone, seq: t.joined, level: Leaf}
	}
	t.nodes[m.ID] = n
	return n
}

// settle ends an event: every member gets a parent, and what changed gets its epochs.
func (t *Tree) settle() []Change {
	n := 0
	for _, s := range t.stripes {
		s.adopt()
		s.spread()
		n += len(s.touched)
	}
	changes := make([]Change, 0, n)
	backups := make([]ID, 0, maxBackups*n)
	for _, s := range t.stripes {
		for _, was := range s.touched {
			p := was.place
			p.touched = false
			if p.node.gone || was.attached && p.parent == was.parent && p.level == was.level {
				continue
			}
			start := len(backups)
			backups = t.backups(backups, s, p)
			changes = append(changes, t.issue(s, was, backups[start:len(backups):len(backups)]))
		}
		s.touched = s.touched[:0]
	}
	return changes
}

// issue gives a place that has changed its epoch.
func (t *Tree) issue(s *stripe, was touch, backups []ID) Change {
	t.epoch.Seq++
	was.place.epoch = t.epoch
	c := Change{Attachment: s.attachment(was.place), Backups: backups}
	if was.parent != nil && !was.parent.node.failed {
		c.Old = was.parent.node.ID
	}
	return c
}

func (t *Tree) unknown(id ID) error { return fmt.Errorf("member %q: %w", id, ErrUnknown) }
