package member_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an image, its registry, and agents that reach each other over pipes.
type world struct {
	t        *testing.T
	blob     *blocktest.Blob
	image    *stream.Image
	registry *blocktest.Counting
	agents   map[stream.PeerID]*agent
	wg       sync.WaitGroup
}

type agent struct {
	world  *world
	id     stream.PeerID
	node   *stream.Node
	store  *blocktest.Memory
	member *member.Member

	mu     sync.Mutex
	dead   bool
	conns  []stream.Conn
	failed map[stream.PeerID]int
}

// inWorld runs a test on virtual time; what it started has ended when it returns.
func inWorld(t *testing.T, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 40<<10, 1<<10)
		image, err := stream.NewImage(digest.FromString("image"), 2, blob.Index)
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, blob: blob, image: image, registry: &blocktest.Counting{Next: blob}, agents: map[stream.PeerID]*agent{}}
		defer w.wg.Wait()
		defer w.close()
		test(w)
	})
}

func (w *world) close() {
	for _, a := range w.agents {
		if err := a.member.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

// agent adds an agent; edit changes its configuration.
func (w *world) agent(id stream.PeerID, edit ...func(*member.Config)) *agent {
	w.t.Helper()
	node, err := stream.NewNode(stream.NodeConfig{Authorize: func(stream.PeerID) error { return nil }})
	if err != nil {
		w.t.Fatal(err)
	}
	a := &agent{world: w, id: id, node: node, store: new(blocktest.Memory), failed: map[stream.PeerID]int{}}
	cfg := member.Config{Node: node, Image: w.image, Attach: a.attach, Store: a.store, Origin: w.registry, Stack: cached,
		Order: order(w.image), Failed: func(p stream.PeerID, _ error) {
			a.mu.Lock()
			a.failed[p]++
			a.mu.Unlock()
		}}
	for _, e := range edit {
		e(&cfg)
	}
	if a.member, err = member.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	w.agents[id] = a
	return a
}

func order(im *stream.Image) []int {
	all := make([]int, im.Len())
	for i := range all {
		all[i] = i
	}
	return all
}

// all has a root fetch every block ahead.
func all(cfg *member.Config) { cfg.Ahead = cfg.Image.Len() }

// cached is the smallest stack.
func cached(store blockfmt.Store, next blockfmt.Source) blockfmt.Source { return stack{store, next} }

type stack struct {
	store blockfmt.Store
	next  blockfmt.Source
}

func (s stack) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if stored, err := s.store.Block(ctx, ref); err == nil {
		return stored, nil
	}
	stored, err := s.next.Block(ctx, ref)
	if err == nil {
		err = s.store.Put(ctx, ref, stored)
	}
	return stored, err
}

// attach connects to a peer's node by a pipe.
func (a *agent) attach(ctx context.Context, s *stream.Share, to stream.Address, at stream.Attachment) (*stream.Peer, error) {
	parent := a.world.agents[to.ID]
	if parent == nil {
		return nil, fmt.Errorf("no agent %s: %w", to.ID, blockfmt.ErrTransient)
	}
	up, down := stream.Pipe()
	if !parent.connect(up) || !a.connect(down) {
		return nil, fmt.Errorf("%s is dead: %w", to.ID, blockfmt.ErrTransient)
	}
	a.world.wg.Go(func() { _ = parent.node.Serve(context.Background(), up, a.id) })
	return s.Attach(ctx, down, to.ID, at)
}

func (a *agent) connect(c stream.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = append(a.conns, c)
	return !a.dead
}

// kill ends an agent all at once.
func (a *agent) kill() {
	a.mu.Lock()
	a.dead = true
	conns := a.conns
	a.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// place tells agents their place in a stripe: each is fed by the one before it in its line.
func (w *world) place(epoch uint64, stripe int, lines ...[]*agent) {
	w.t.Helper()
	for _, line := range lines {
		for i, a := range line {
			at := member.Position{Stripe: stripe, Epoch: epoch}
			if i > 0 {
				at.Parent = address(line[i-1])
			}
			if i > 1 {
				at.Backups = append(at.Backups, address(line[i-2]))
			}
			at.Standby = i == 1
			if i+1 < len(line) {
				at.Children = append(at.Children, member.Child{Address: address(line[i+1]), Epoch: epoch})
			}
			a.place(at)
		}
	}
}

func address(a *agent) stream.Address { return stream.Address{ID: a.id} }

func (a *agent) place(at member.Position) {
	a.world.t.Helper()
	if err := a.member.Place(at); err != nil {
		a.world.t.Fatal(err)
	}
}

// read reads blocks as a container does, and compares them.
func (a *agent) read(blocks ...int) {
	a.world.t.Helper()
	for _, i := range blocks {
		ref := a.world.image.Ref(i)
		stored, err := a.member.Blocks().Block(context.Background(), ref)
		if err != nil || string(stored) != string(a.world.blob.Bytes(ref)) {
			a.world.t.Errorf("%s reads block %d: %d bytes, %v", a.id, i, len(stored), err)
		}
	}
}

// full says whether an agent has the image.
func (a *agent) full() bool {
	held := 0
	for _, n := range a.member.Held() {
		held += n
	}
	return held == a.world.image.Len()
}

func (a *agent) hasFailed(b *agent) bool { return a.failures(b) > 0 }

// failures returns how often b was reported as failed.
func (a *agent) failures(b *agent) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed[b.id]
}
