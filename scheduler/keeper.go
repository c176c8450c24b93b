package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/tree"
)

// keeper knows the agents that have sessions with this scheduler, and keeps the trees that it owns. All that agents do comes
// here; what follows from it goes to the store first and then to sessions.
type keeper struct {
	self    string // URL of this scheduler
	cfg     Config
	store   store.Store
	log     *slog.Logger
	metrics *metrics
	started time.Time
	survey  chan struct{} // wakes the search for trees to take over
	tasks   sync.WaitGroup
	running context.Context // of the tasks

	mu      sync.Mutex
	forest  *tree.Forest
	agents  map[string]*agent
	images  map[digest.Digest]*image
	live    []string // URLs of the schedulers that live, by name, as last heard
	leased  bool     // the store knows that this one lives
	failing bool     // the last write of a tree failed for want of the store
	revoked map[string]bool
	swept   time.Time // when the last sweep was
}

// agent is an agent that is known: it has a session, or is in a tree.
type agent struct {
	id      string
	peer    api.Peer
	version int    // of peer: grows when its addresses change
	zone    string // as of the last heartbeat
	session *session
	seen    time.Time // last sign of life
	missing bool      // known from the store only, not seen since this scheduler owns its trees
	silent  bool      // its session ended, or it missed a heartbeat
	reports map[string]time.Time
}

func newKeeper(ctx context.Context, self string, cfg Config, s store.Store, m *metrics) (*keeper, error) {
	forest, err := tree.NewForest(tree.ForestConfig{Stripes: cfg.Stripes, Budget: cfg.Budget})
	if err != nil {
		return nil, err
	}
	return &keeper{
		self: self, cfg: cfg, store: s, log: cfg.Log, metrics: m, started: time.Now(), survey: make(chan struct{}, 1), running: ctx, forest: forest,
		agents: map[string]*agent{}, images: map[digest.Digest]*image{}, revoked: map[string]bool{},
	}, nil
}

// mayChange returns an error if trees have to stand still. Callers hold mu.
func (k *keeper) mayChange() error {
	switch {
	case k.running.Err() != nil:
		return fmt.Errorf("%w: this scheduler stops", errUnavailable)
	case !k.leased || k.failing:
		return fmt.Errorf("%w: trees stand still until it answers", errUnavailable)
	}
	return nil
}

// open begins a session with an agent, which replaces its former one. It leaves the trees that the agent does not want any more.
func (k *keeper) open(r api.SessionRequest) (*session, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running.Err() != nil {
		return nil, k.mayChange()
	}
	if k.revoked[r.Agent.ID] {
		return nil, fmt.Errorf("%w: %s is revoked", errDenied, r.Agent.ID)
	}
	if err := k.machine(r.Heartbeat); err != nil {
		return nil, err
	}
	a := k.agents[r.Agent.ID]
	if a == nil {
		a = &agent{id: r.Agent.ID, peer: r.Agent}
		k.agents[a.id] = a
	}
	if a.session != nil {
		a.session.end("a newer session of the same agent replaces it; if this repeats, two machines have the same key")
	}
	a.session = newSession(a.id)
	a.alive()
	k.describe(a, r.Heartbeat)
	hello := api.Hello{Session: a.session.id, Stripes: k.cfg.Stripes, Interval: k.cfg.Heartbeat.Duration, Schedulers: k.live, Revoked: k.revocations()}
	a.session.post(api.Event{Hello: &hello})
	for _, name := range k.forest.Images(tree.ID(a.id)) {
		if image := digest.Digest(name); !slices.Contains(r.Wanted, image) && k.mayChange() == nil {
			k.leave(k.images[image], a.id)
		}
	}
	k.metrics.sessions.Set(float64(k.countSessions()))
	return a.session, nil
}

func (k *keeper) countSessions() int {
	n := 0
	for _, a := range k.agents {
		if a.session != nil {
			n++
		}
	}
	return n
}

// alive notes a sign of life.
func (a *agent) alive() {
	a.seen, a.missing, a.silent = time.Now(), false, false
	clear(a.reports)
}

// machine tells the forest how an agent is. Callers hold mu.
func (k *keeper) machine(h api.Heartbeat) error {
	id := tree.ID(h.Agent.ID)
	elsewhere := 0
	if len(k.live) > 1 {
		elsewhere = max(0, h.Children-k.forest.Load(id))
	}
	m := tree.Machine{ID: id, Zone: h.Zone, Budget: h.Budget, Elsewhere: elsewhere, Draining: h.Draining,
		Uplink: h.Uplink, Waiting: treeIDs(h.Waiting), Sent: h.Sent, Received: h.Received}
	if err := k.forest.SetMachine(m); err != nil {
		return fmt.Errorf("%w: heartbeat: %w", errInvalid, err)
	}
	return nil
}

func treeIDs(peers []string) []tree.ID {
	ids := make([]tree.ID, len(peers))
	for i, p := range peers {
		ids[i] = tree.ID(p)
	}
	return ids
}

// describe notes where an agent is. Its children hear of new addresses; others do with their next heartbeat.
func (k *keeper) describe(a *agent, h api.Heartbeat) {
	a.zone = h.Zone
	if slices.Equal(a.peer.Addrs, h.Agent.Addrs) {
		return
	}
	a.peer = h.Agent
	a.version++
	for _, name := range k.forest.Images(tree.ID(a.id)) {
		i := k.images[digest.Digest(name)]
		i.touch(tree.ID(a.id))
		for stripe := range k.cfg.Stripes {
			for _, child := range k.forest.Tree(name).Children(tree.ID(a.id), stripe) {
				i.tell(child, stripe, "")
			}
		}
		k.kick(i)
	}
}

// closed ends what open began, unless a newer session took its place.
func (k *keeper) closed(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.agents[s.peer]; a != nil && a.session == s {
		a.session, a.silent = nil, true
		k.metrics.sessions.Set(float64(k.countSessions()))
	}
}

// current returns the agent of a session.
func (k *keeper) current(peer, session string) (*agent, error) {
	a := k.agents[peer]
	if a == nil || a.session == nil || a.session.id != session {
		return nil, fmt.Errorf("%w of %s: open one", errNoSession, peer)
	}
	return a, nil
}

// enter puts an agent into the tree of an image, which this scheduler claims if nobody has. It returns when that is written.
func (k *keeper) enter(ctx context.Context, peer, session string, r api.EnterRequest) error {
	for {
		i, err := k.imageFor(peer, session, r)
		if err != nil {
			return err
		}
		if err := wait(ctx, i.ready); err != nil {
			return err
		}
		written, err := k.join(i, peer, session, r)
		if errors.Is(err, errOver) {
			if err := wait(ctx, i.over); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		select {
		case err := <-written:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errUnavailable, ctx.Err())
		}
	}
}

func wait(ctx context.Context, event <-chan struct{}) error {
	select {
	case <-event:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUnavailable, ctx.Err())
	}
}

// imageFor returns the image that an agent may enter here, and begins to claim it if need be.
func (k *keeper) imageFor(peer, session string, r api.EnterRequest) (*image, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.current(peer, session); err != nil {
		return nil, err
	}
	if owner := rendezvous(r.Image, k.live); owner != k.self && k.leased {
		return nil, &misdirected{r.Image, owner}
	}
	if err := k.mayChange(); err != nil {
		return nil, err
	}
	i := k.images[r.Image]
	if i == nil {
		i = k.beginClaim(r.Image, r.Ref)
	}
	return i, i.failure
}

// maxImages bounds the trees that one agent can be in here.
const maxImages = 4096

// join puts an agent into a tree that is owned. The channel says when that is written.
func (k *keeper) join(i *image, peer, session string, r api.EnterRequest) (<-chan error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.current(peer, session); err != nil {
		return nil, err
	}
	switch {
	case i.failure != nil:
		return nil, i.failure
	case i.isOver() || i.emptied:
		return nil, errOver
	}
	if err := k.mayChange(); err != nil {
		return nil, err
	}
	id := tree.ID(peer)
	if len(k.forest.Images(id)) >= maxImages {
		return nil, fmt.Errorf("%w: %s is in %d trees", errBusy, peer, maxImages)
	}
	k.makeRoom(i)
	changes, err := k.forest.Join(i.name.String(), id)
	switch {
	case errors.Is(err, tree.ErrExists):
		k.tellAll(i, id)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errInvalid, err)
	default:
		i.members[id] = &membership{}
		i.apply(changes)
		i.touch(id)
	}
	m := i.members[id]
	m.listed, i.vacant = time.Now(), time.Time{}
	if !slices.Equal(m.total, r.Total) {
		m.total = slices.Clone(r.Total)
		i.touch(id)
	}
	return k.promise(i), nil
}

// quit takes an agent out of the tree of an image. It returns when that is written.
func (k *keeper) quit(ctx context.Context, peer, session string, name digest.Digest) error {
	written, err := k.startQuit(peer, session, name)
	if err != nil || written == nil {
		return err
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUnavailable, ctx.Err())
	}
}

func (k *keeper) startQuit(peer, session string, name digest.Digest) (<-chan error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.current(peer, session); err != nil {
		return nil, err
	}
	i := k.images[name]
	if i == nil || i.members[tree.ID(peer)] == nil {
		return nil, nil // it is not there, which is what it wants
	}
	if err := k.mayChange(); err != nil {
		return nil, err
	}
	k.leave(i, peer)
	return k.promise(i), nil
}

// leave takes an agent out of a tree. Callers hold mu and know that trees may change.
func (k *keeper) leave(i *image, peer string) {
	id := tree.ID(peer)
	k.makeRoom(i)
	k.tellParents(i, id)
	changes, err := k.forest.Leave(i.name.String(), id)
	if err != nil {
		k.log.Error("cannot leave a tree", "image", i.name, "peer", peer, "err", err)
		return
	}
	k.removed(i, id, changes)
}

// removed notes that a member is gone.
func (k *keeper) removed(i *image, id tree.ID, changes []tree.Change) {
	delete(i.members, id)
	i.touch(id)
	i.apply(changes)
	if len(i.members) == 0 {
		i.emptied = true
	}
	k.kick(i)
}

// fail takes an agent that is gone out of all trees. Callers hold mu and know that trees may change.
func (k *keeper) fail(a *agent, why string) {
	id := tree.ID(a.id)
	names := k.forest.Images(id)
	for _, name := range names {
		i := k.images[digest.Digest(name)]
		k.makeRoom(i)
		k.tellParents(i, id)
	}
	out := k.forest.Fail
	if a.session != nil {
		out = k.forest.Expel // it may well enter again
	}
	changes, err := out(id)
	if err != nil {
		k.log.Error("cannot take an agent out of its trees", "peer", a.id, "err", err)
		return
	}
	byImage := map[string][]tree.Change{}
	for _, c := range changes {
		byImage[c.Image] = append(byImage[c.Image], c.Change)
	}
	for _, name := range names {
		k.removed(k.images[digest.Digest(name)], id, byImage[name])
	}
	clear(a.reports)
	if len(names) > 0 {
		k.metrics.failures.WithLabelValues(why).Inc()
		k.log.Info("agent failed", "peer", a.id, "why", why, "trees", len(names))
	}
	if a.session == nil {
		delete(k.agents, a.id)
	}
}

// revocations returns the revoked peers by name. Callers hold mu.
func (k *keeper) revocations() []string { return slices.Sorted(maps.Keys(k.revoked)) }

// setRevoked replaces the list of revoked peers, ends their sessions and takes them out of their trees.
func (k *keeper) setRevoked(peers []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.revoked)
	for _, peer := range peers {
		k.revoked[peer] = true
	}
	list := k.revocations()
	k.broadcast(api.Event{Revoked: &list})
	for _, peer := range list {
		if a := k.agents[peer]; a != nil && a.session != nil {
			a.session.end("the agent is revoked")
		}
	}
	k.expel()
}

// expel takes revoked agents out of their trees, if trees may change. Callers hold mu.
func (k *keeper) expel() {
	if k.mayChange() != nil {
		return
	}
	for peer := range k.revoked {
		if a := k.agents[peer]; a != nil {
			k.fail(a, "revoked")
		}
	}
}

// broadcast says something to all agents with sessions. Callers hold mu.
func (k *keeper) broadcast(e api.Event) {
	for _, a := range k.agents {
		if a.session != nil {
			a.session.post(e)
		}
	}
}

func (k *keeper) isRevoked(peer string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.revoked[peer]
}
