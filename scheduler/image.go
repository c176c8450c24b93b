package scheduler

import (
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree"
)

// image is an image whose tree this scheduler owns, or is about to. Its fields are guarded by keeper.mu.
type image struct {
	name    digest.Digest
	ready   chan struct{} // closed when the tree is claimed and there, or that failed
	over    chan struct{} // closed when the scheduler does not own the tree any more, or never did
	failure error         // why the claim failed
	record  owner
	claim   int64 // revision of record in the store
	members map[tree.ID]*membership
	emptied bool      // the last member is gone; the tree is over when that is written
	vacant  time.Time // since when it is owned without members

	open    *batch   // events since the last that is sealed; nil if there are none
	sealed  []*batch // in order, not written yet; the first is being written
	writing bool     // a task writes batches
}

// errOver says that a tree is being given up because it has no members: it is to be claimed again.
var errOver = errors.New("tree is over")

// membership is what is known of a member beyond its place.
type membership struct {
	total  []int
	rates  []int64
	cutOff []string  // peers, as it said last
	listed time.Time // when a heartbeat named the image last
	sent   []sent    // by stripe
}

// sent is what the last position said of others, who can change without it.
type sent struct {
	backups  []tree.ID
	versions []int // of the backups' addresses
	standby  bool
}

func newImage(name digest.Digest, ref string) *image {
	return &image{
		name: name, ready: make(chan struct{}), over: make(chan struct{}), record: owner{Ref: ref}, members: map[tree.ID]*membership{},
	}
}

func (i *image) isOver() bool {
	select {
	case <-i.over:
		return true
	default:
		return false
	}
}

// isOwned: the tree is here and may be changed.
func (i *image) isOwned() bool {
	select {
	case <-i.ready:
		return i.failure == nil && !i.isOver()
	default:
		return false
	}
}

// apply notes what follows from an event: members to write, and positions to send to whoever is concerned.
func (i *image) apply(changes []tree.Change) {
	for _, c := range changes {
		i.touch(c.Child)
		i.tell(c.Child, c.Stripe, c.Old)
		i.tell(c.Parent, c.Stripe, "")
		i.tell(c.Old, c.Stripe, "")
	}
}

// touch says that a member is to be written.
func (i *image) touch(id tree.ID) { i.batch().records[id] = true }

// tell says that a member is to be told its position in a stripe, and that it had another parent.
func (i *image) tell(id tree.ID, stripe int, old tree.ID) {
	if id == tree.Registry {
		return
	}
	b, at := i.batch(), place{id, stripe}
	if old != "" || b.places[at] == "" {
		b.places[at] = old
	}
}

func (i *image) batch() *batch {
	if i.open == nil {
		i.open = &batch{records: map[tree.ID]bool{}, places: map[place]tree.ID{}}
	}
	return i.open
}

// tellAll tells a member its positions in all stripes.
func (k *keeper) tellAll(i *image, id tree.ID) {
	for stripe := range k.cfg.Stripes {
		i.tell(id, stripe, "")
	}
}

// tellParents tells those who feed a member, which is about to go, whom they feed without it.
func (k *keeper) tellParents(i *image, id tree.ID) {
	t := k.forest.Tree(i.name.String())
	for stripe := range k.cfg.Stripes {
		if parent, ok := t.Parent(id, stripe); ok {
			i.tell(parent, stripe, "")
		}
	}
}

// position says where a member is now; false if it is nowhere.
func (k *keeper) position(i *image, at place, old tree.ID) (api.Position, bool) {
	t := k.forest.Tree(i.name.String())
	if t == nil || i.members[at.id] == nil {
		return api.Position{}, false
	}
	attachments, err := t.Attachments(at.id)
	if err != nil {
		return api.Position{}, false
	}
	a := attachments[at.stripe]
	p := api.Position{Image: i.name, Stripes: k.cfg.Stripes, Stripe: at.stripe, Old: string(old), LeaveOld: k.forest.Avoid(old), Epoch: i.wire(a.Epoch)}
	if a.Parent != tree.Registry {
		parent := k.peer(a.Parent)
		p.Parent = &parent
	}
	p.Backups, p.Standby = k.backups(i, t, at), follows(t, at)
	for _, child := range t.Children(at.id, at.stripe) {
		if its, err := t.Attachments(child); err == nil {
			p.Children = append(p.Children, api.Child{Peer: k.peer(child), Epoch: i.wire(its[at.stripe].Epoch), Avoid: k.forest.Avoid(child)})
		}
	}
	return p, true
}

// wire returns an epoch as agents compare it. None overflows: terms are checked with the claim, and a tree in which so many
// attachments were made is given up in time (see seal).
func (i *image) wire(e tree.Epoch) uint64 {
	number, err := wireEpoch(e)
	if err != nil {
		return 0
	}
	return number
}

// backups returns a member's backups, and notes that it is told of them.
func (k *keeper) backups(i *image, t *tree.Tree, at place) []api.Peer {
	m := i.members[at.id]
	if m.sent == nil {
		m.sent = make([]sent, k.cfg.Stripes)
	}
	s := sent{backups: t.Backups(at.id, at.stripe), standby: follows(t, at)}
	peers := make([]api.Peer, len(s.backups))
	for n, id := range s.backups {
		peers[n] = k.peer(id)
		s.versions = append(s.versions, k.version(id))
	}
	m.sent[at.stripe] = s
	return peers
}

// follows tells whether a member is the first standby of a root.
func follows(t *tree.Tree, at place) bool {
	root, _ := t.Root(at.stripe)
	parent, _ := t.Parent(at.id, at.stripe)
	return parent != tree.Registry && parent == root && t.Standbys(at.stripe)[0] == at.id
}

// stale tells whether a member should hear of other backups, or that it is the first standby now.
func (k *keeper) stale(i *image, t *tree.Tree, at place) bool {
	m := i.members[at.id]
	if m.sent == nil {
		return true
	}
	now, was := t.Backups(at.id, at.stripe), m.sent[at.stripe]
	if !slices.Equal(now, was.backups) || follows(t, at) != was.standby {
		return true
	}
	for n, id := range now {
		if k.version(id) != was.versions[n] {
			return true
		}
	}
	return false
}

func (k *keeper) peer(id tree.ID) api.Peer {
	if a := k.agents[string(id)]; a != nil {
		return a.peer
	}
	return api.Peer{ID: string(id)}
}

func (k *keeper) version(id tree.ID) int {
	if a := k.agents[string(id)]; a != nil {
		return a.version
	}
	return 0
}
