package treesim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/xylem-project/xylem/tree"
	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// ownerID is the host of the tree's owner.
const ownerID stream.PeerID = "owner"

// imageName is the only image's in the forest.
const imageName = "image"

const (
	beatInterval  = time.Second            // of agents
	leastInterval = 50 * time.Millisecond  // between an agent's heartbeats
	deadAfter     = 3 * time.Second        // without a heartbeat
	watchEvery    = 250 * time.Millisecond // how often the owner looks for the dead
	witnesses     = 2                      // who report a peer before it is taken for dead
)

// beat is an agent's heartbeat.
type beat struct {
	from    stream.PeerID
	held    []int
	epochs  []uint64
	machine tree.Machine
	failed  []tree.ID
	cutOff  []tree.ID
}

// owner keeps the tree, as a scheduler does. Everything runs on the Network's goroutine.
type owner struct {
	world   *world
	up      bool
	term    uint64
	forest  *tree.Forest
	saved   *tree.Snapshot // while it is down
	members map[tree.ID]*membership
	changed map[tree.ID]bool // whose positions may be others now
	flushes bool
}

// membership is what the owner knows of a member.
type membership struct {
	heard  time.Duration
	told   []member.Position
	failed map[stream.PeerID]bool // who reported it of late
}

func newMembership(heard time.Duration) *membership {
	return &membership{heard: heard, failed: map[stream.PeerID]bool{}}
}

func newOwner(w *world) (*owner, error) {
	o := &owner{world: w, up: true, term: 1, members: map[tree.ID]*membership{}, changed: map[tree.ID]bool{}}
	var err error
	o.forest, err = tree.NewForest(tree.ForestConfig{Stripes: w.cfg.Stripes, Epoch: tree.Epoch{Term: o.term}})
	return o, err
}

// hear takes a heartbeat, which is also how agents join.
func (o *owner) hear(b beat) {
	if !o.up {
		return
	}
	id := tree.ID(b.from)
	m := o.members[id]
	if m == nil {
		m = newMembership(0)
		o.members[id] = m
	}
	m.heard = o.world.net.Now()
	if err := o.forest.SetMachine(b.machine); err != nil {
		o.world.fail(err)
	}
	if t := o.tree(); t == nil || !has(t, id) {
		o.join(id)
	}
	if err := o.tree().Report(id, b.held); err != nil {
		o.world.fail(err)
	}
	for stripe, at := range m.told {
		if b.epochs[stripe] < at.Epoch { // what was told got lost
			m.told[stripe] = member.Position{}
		}
	}
	o.note(id)
	for _, blamed := range o.forest.Complain(imageName, id, tree.Complaint{At: time.Now(), Unreachable: b.failed, CutOff: b.cutOff}) {
		o.world.log("blamed", string(blamed), "by "+string(id))
	}
	o.step()
}

func (o *owner) tree() *tree.Tree { return o.forest.Tree(imageName) }

func has(t *tree.Tree, id tree.ID) bool {
	_, ok := t.Member(id)
	return ok
}

func (o *owner) join(id tree.ID) {
	changes, err := o.forest.Join(imageName, id)
	if err != nil {
		o.world.fail(err)
	}
	o.world.log("join", string(id), "")
	o.apply(changes)
}

// step has the forest correct roles.
func (o *owner) step() {
	for {
		_, id, changes, ok := o.forest.Correct()
		if !ok {
			return
		}
		if m, _ := o.tree().Member(id); m.Role == tree.RoleLeaf {
			o.world.log("demoted", string(id), "")
		}
		o.apply(changes)
		for stripe := range o.tree().Stripes() { // roots do not ask whom they had better avoid
			if parent, ok := o.tree().Parent(id, stripe); ok {
				o.note(parent)
			}
		}
	}
}

// apply notes whom changes concern.
func (o *owner) apply(changes []tree.Change) {
	t := o.tree()
	for _, c := range changes {
		o.note(c.Child)
		o.note(c.Parent)
		o.note(c.Old)
		if t == nil {
			continue
		}
		if root, ok := t.Root(c.Stripe); ok {
			if c.Child == root && c.Parent == tree.Registry {
				o.world.log("root", string(root), fmt.Sprintf("of stripe %d", c.Stripe))
			}
			o.note(root)
			for _, s := range t.Children(root, c.Stripe) {
				o.note(s)
			}
		}
	}
}

// note plans to tell a member its positions, if they are not what it was told.
func (o *owner) note(id tree.ID) {
	if id == tree.Registry {
		return
	}
	o.changed[id] = true
	if !o.flushes {
		o.flushes = true
		o.world.net.After(0, 0, o.flush)
	}
}

// flush tells members their positions.
func (o *owner) flush() {
	o.flushes = false
	changed := slices.Sorted(maps.Keys(o.changed))
	clear(o.changed)
	t := o.tree()
	if !o.up || t == nil {
		return
	}
	for _, id := range changed {
		attachments, err := t.Attachments(id)
		m := o.members[id]
		if err != nil || m == nil {
			continue
		}
		if m.told == nil {
			m.told = make([]member.Position, t.Stripes())
		}
		for stripe, a := range attachments {
			if at := o.position(t, a); !samePosition(at, m.told[stripe]) {
				at.LeaveOld = o.forest.Avoid(tree.ID(m.told[stripe].Parent.ID))
				m.told[stripe] = at
				o.world.tell(stream.PeerID(id), at)
			}
		}
	}
}

func (o *owner) position(t *tree.Tree, a tree.Attachment) member.Position {
	at := member.Position{Stripe: a.Stripe, Epoch: number(a.Epoch), Parent: address(a.Parent)}
	for _, b := range t.Backups(a.Child, a.Stripe) {
		at.Backups = append(at.Backups, address(b))
	}
	for _, c := range t.Children(a.Child, a.Stripe) {
		if list, err := t.Attachments(c); err == nil {
			at.Children = append(at.Children, member.Child{Address: address(c), Epoch: number(list[a.Stripe].Epoch), Avoid: o.forest.Avoid(c)})
		}
	}
	standbys := t.Standbys(a.Stripe)
	at.Standby = len(standbys) > 0 && standbys[0] == a.Child
	return at
}

// number maps an epoch to one number, as schedulers do.
func number(e tree.Epoch) uint64 { return e.Term<<40 | e.Seq }

func address(id tree.ID) stream.Address { return stream.Address{ID: stream.PeerID(id)} }

func samePosition(a, b member.Position) bool {
	sameAddress := func(x, y stream.Address) bool { return x.ID == y.ID }
	return a.Epoch == b.Epoch && a.Parent.ID == b.Parent.ID && a.Standby == b.Standby && slices.EqualFunc(a.Backups, b.Backups, sameAddress) &&
		slices.EqualFunc(a.Children, b.Children, func(x, y member.Child) bool { return x.ID == y.ID && x.Epoch == y.Epoch && x.Avoid == y.Avoid })
}

// report notes that a member could not get blocks from another.
func (o *owner) report(id tree.ID, by stream.PeerID) {
	m := o.members[id]
	if m == nil || !o.up || o.members[tree.ID(by)] == nil {
		return
	}
	m.failed[by] = true
	if len(m.failed) >= witnesses {
		o.remove(id, "reported")
	}
}

// remove takes a member out. If it lives, its next heartbeat lets it join again.
func (o *owner) remove(id tree.ID, why string) {
	delete(o.members, id)
	changes, err := o.forest.Expel(id)
	if err != nil {
		o.world.fail(err)
		return
	}
	o.world.log("failed", string(id), why)
	for _, c := range changes {
		o.apply([]tree.Change{c.Change})
	}
	o.step()
}

// watch looks for members that are silent, again and again.
func (o *owner) watch() {
	o.world.net.After(watchEvery, 0, o.watch)
	if !o.up {
		return
	}
	now := o.world.net.Now()
	for _, id := range slices.Sorted(maps.Keys(o.members)) {
		m := o.members[id]
		clear(m.failed) // reports that do not come together are not counted together
		if now-m.heard > deadAfter {
			o.remove(id, "silent")
		}
	}
}

// stop ends the owner; what it has stored stays.
func (o *owner) stop() {
	o.up = false
	if t := o.tree(); t != nil {
		snap := t.Snapshot()
		o.saved = &snap
	}
}

// restart lets another owner take over what was stored.
func (o *owner) restart() {
	o.up = true
	o.term++
	forest, err := tree.NewForest(tree.ForestConfig{Stripes: o.world.cfg.Stripes, Epoch: tree.Epoch{Term: o.term}})
	if err != nil {
		o.world.fail(err)
		return
	}
	o.forest, o.members = forest, map[tree.ID]*membership{}
	if o.saved == nil {
		return
	}
	if err := forest.Adopt(imageName, *o.saved, o.term); err != nil {
		o.world.fail(fmt.Errorf("adopt: %w", err))
		return
	}
	for _, m := range o.saved.Members {
		o.members[m.ID] = newMembership(o.world.net.Now())
	}
	o.saved = nil
}

// feeding returns who feeds others or is a root.
func (o *owner) feeding() (list []stream.PeerID) {
	t := o.tree()
	if t == nil {
		return nil
	}
	for stripe := range t.Stripes() {
		for id, depth := range t.Walk(stripe) {
			if depth == 0 || len(t.Children(id, stripe)) > 0 {
				list = append(list, stream.PeerID(id))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
