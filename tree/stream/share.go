package stream

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// ShareConfig of a Share. Image, Source and Store are needed.
type ShareConfig struct {
	Image *Image
	// Source answers what children ask for: the node's own block stack, which waits for what is not here yet, and asks
	// upstream for it in the lane of the context.
	Source blockfmt.Source
	// Store keeps what is pushed to this node, and has what this node pushes on. If it has a Keep method, Put for bytes
	// that were verified already, that is used.
	Store blockfmt.Store
	// Recycle says that the Store does not hold on to the bytes after Put or Keep returned, as one of files does not: so the
	// buffers of pushed blocks are used again. Default: each block has memory of its own.
	Recycle bool
	// Feed makes the policy of what is pushed to a child. Default InOrder without a startup record.
	Feed func() Feed
}

// A Share is an image on a node: what its children are served from and its parents push to.
type Share struct {
	node     *Node
	cfg      ShareConfig
	image    *Image
	verified bool // the Source's blocks are

	mu     sync.Mutex
	closed bool
	have   bitset
	kept   bitset // what the Store was given: have runs ahead of it
	hot    *hot
	edges  []*edge // replaced, not changed
	peers  []*Peer // replaced, not changed
	epochs map[edgeKey]uint64
}

// edgeKey names an edge of an image in the course of epochs.
type edgeKey struct {
	child   PeerID
	stripes Stripes
}

// maxEpochs bounds how many edges of the past a share remembers the epochs of.
const maxEpochs = 4096

// Share begins to serve an image. Close it when done.
func (n *Node) Share(cfg ShareConfig) (*Share, error) {
	if cfg.Feed == nil {
		blocks := cfg.Image.Len()
		cfg.Feed = func() Feed { return InOrder(blocks, nil) }
	}
	s := &Share{node: n, cfg: cfg, image: cfg.Image, verified: blockfmt.IsVerified(cfg.Source), have: newBitset(cfg.Image.Len()),
		kept: newBitset(cfg.Image.Len()), hot: newHot(n.cfg.Hot), epochs: map[edgeKey]uint64{}}
	for i := range s.image.Len() {
		if cfg.Store.Has(s.image.Ref(i)) {
			s.have.add(i)
			s.kept.add(i)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shares[s.image.Digest()] != nil {
		return nil, fmt.Errorf("image %s is shared already", s.image.Digest())
	}
	n.shares[s.image.Digest()] = s
	return s, nil
}

// Close ends all edges of the image and waits for its Peers.
func (s *Share) Close() error {
	s.node.mu.Lock()
	if s.node.shares[s.image.Digest()] == s {
		delete(s.node.shares, s.image.Digest())
	}
	s.node.mu.Unlock()
	s.mu.Lock()
	s.closed = true
	edges, peers := s.edges, s.peers
	s.mu.Unlock()
	gone := fmt.Errorf("image %s is no longer shared: %w", s.image.Digest(), blockfmt.ErrTransient)
	for _, e := range edges {
		e.end(gone)
	}
	for _, p := range peers {
		p.Close()
	}
	for _, e := range edges {
		<-e.done
	}
	return nil
}

// Have returns how many blocks are here.
func (s *Share) Have() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have.count()
}

// Held returns how many blocks of each stripe are here.
func (s *Share) Held() []int {
	held := make([]int, s.image.StripeCount())
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.image.Len() {
		if s.have.has(i) {
			held[s.image.Stripe(i)]++
		}
	}
	return held
}

// Children returns who is fed. Those that attached for being a backup are not among them.
func (s *Share) Children() []PeerID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []PeerID
	for _, e := range s.edges {
		if e.stripes != 0 {
			ids = append(ids, e.child)
		}
	}
	return ids
}

// Arrived tells that a block is in the Store now, wherever it came from: it is pushed to the children that lack it. The
// bytes are verified; they may be kept for a while.
func (s *Share) Arrived(ref blockfmt.Ref, stored []byte) {
	if i, ok := s.image.Find(ref); ok {
		s.settled(i)
		s.arrived(i, newBlock(stored), nil)
	}
}

// arrived spreads the news of a verified block, except to the peer it came from.
func (s *Share) arrived(i int, b *block, from *Peer) {
	s.mu.Lock()
	known := s.have.has(i)
	s.have.add(i)
	if len(s.edges) > 0 { // else the next block had better come into the same memory
		s.hot.add(i, b)
	}
	edges, peers := s.edges, s.peers
	s.mu.Unlock()
	if known {
		return
	}
	if _, more := s.node.received.add(len(b.stored), time.Now()); more {
		s.node.cfg.Measured()
	}
	for _, e := range edges {
		e.arrived(i)
	}
	for _, p := range peers {
		if p != from {
			p.arrived(i)
		}
	}
}

// keep takes in a verified block that nobody here waits for.
func (s *Share) keep(ctx context.Context, i int, b *block, from *Peer) {
	s.arrived(i, b, from)
	// A store that cannot keep a block says so in its own log; the block is served from memory for a while.
	if s.put(ctx, s.image.Ref(i), b.stored) == nil {
		s.settled(i)
		s.arrived(i, b, from) // if somebody looked for it in the store too early
	}
}

func (s *Share) put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	if k, ok := s.cfg.Store.(keeper); ok {
		return k.Keep(ctx, ref, stored)
	}
	return s.cfg.Store.Put(ctx, ref, stored)
}

// settled notes that the Store has a block.
func (s *Share) settled(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.add(i)
}

// A keeper is what a Store may be as well: Keep is Put for bytes that were verified already.
type keeper interface {
	Keep(ctx context.Context, ref blockfmt.Ref, stored []byte) error
}

func (s *Share) has(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have.has(i)
}

// inMemory returns a block if it is among the latest, for the caller to release.
func (s *Share) inMemory(i int) *block {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.hot.blocks[i]
	if b == nil {
		return nil
	}
	s.node.counters.Hot.Add(1)
	return b.hold()
}

// read gives a verified block as the node's own readers get it.
func (s *Share) read(ctx context.Context, i int) ([]byte, error) {
	ref := s.image.Ref(i)
	stored, err := s.cfg.Source.Block(ctx, ref)
	if err != nil || s.verified {
		return stored, err
	}
	if err := s.node.slot(ctx); err != nil {
		return nil, err
	}
	defer s.node.release()
	return stored, s.node.cfg.Verify(ref, stored)
}

// stored gives a block that is here, for the caller to release, and takes back the word if it is not.
func (s *Share) stored(ctx context.Context, i int) (*block, error) {
	if b := s.inMemory(i); b != nil {
		return b, nil
	}
	s.mu.Lock()
	kept := s.kept.has(i)
	s.mu.Unlock()
	stored, err := s.cfg.Store.Block(ctx, s.image.Ref(i))
	if err != nil {
		s.lacks(i, kept)
		return nil, err
	}
	return newBlock(stored), nil
}

// lacks takes back the word that a block is here, which was not found in the Store although it was kept there, or before it was:
// then it is here again as soon as it is kept.
func (s *Share) lacks(i int, kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kept || !s.kept.has(i) {
		s.have.remove(i)
		s.kept.remove(i)
	}
}

// missed tells the other children's feeds what one of them demands.
func (s *Share) missed(i int, by *edge) {
	s.mu.Lock()
	edges := s.edges
	s.mu.Unlock()
	for _, e := range edges {
		if e != by {
			e.missed(i)
		}
	}
}

// Expect tells that a child is, or was, attached for these stripes in an epoch: older attachments are refused, and edges of
// them drain.
func (s *Share) Expect(child PeerID, stripes Stripes, epoch uint64) {
	key := edgeKey{child, stripes}
	s.mu.Lock()
	s.epochs[key] = max(s.epochs[key], epoch)
	old := s.older(key, epoch)
	s.mu.Unlock()
	for _, e := range old {
		e.replace()
	}
}

// older returns the edges for this key of epochs before epoch; mu is held.
func (s *Share) older(key edgeKey, epoch uint64) (old []*edge) {
	for _, e := range s.edges {
		if e.edgeKey == key && e.epoch < epoch {
			old = append(old, e)
		}
	}
	return old
}

// admit takes an edge in, in place of those that it supersedes. A backup's edge has no place in the tree, and a child may have
// one for each stripe, of different epochs: it supersedes nothing.
func (s *Share) admit(e *edge) error {
	s.mu.Lock()
	if known := s.epochs[e.edgeKey]; e.stripes != 0 && e.epoch < known {
		s.mu.Unlock()
		return fmt.Errorf("epoch %d of %s, after epoch %d: %w", e.epoch, e.child, known, ErrStale)
	}
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("image %s: %w", s.image.Digest(), blockfmt.ErrNotFound)
	}
	var old []*edge
	if e.stripes != 0 {
		s.forgetEpochs()
		s.epochs[e.edgeKey] = e.epoch
		old = s.older(e.edgeKey, e.epoch+1) // one of the same epoch is the same edge, whose connection broke
	}
	s.edges = append(slices.Clip(s.edges), e)
	s.mu.Unlock()
	for _, o := range old {
		o.replace()
	}
	return nil
}

// forgetEpochs makes room for one more; mu is held.
func (s *Share) forgetEpochs() {
	for key := range s.epochs {
		if len(s.epochs) < maxEpochs {
			return
		}
		if !slices.ContainsFunc(s.edges, func(e *edge) bool { return e.edgeKey == key }) {
			delete(s.epochs, key)
		}
	}
}

func (s *Share) leave(e *edge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.edges = without(s.edges, e)
}

func without[T comparable](list []T, gone T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(t T) bool { return t == gone })
}

// Serve serves the child at the other end of conn until the edge ends. The child's identity was established by the caller.
// It returns nil when the child left.
func (n *Node) Serve(ctx context.Context, conn Conn, child PeerID) error {
	defer conn.Close()
	if err := n.Allowed(child); err != nil {
		n.counters.Refused.Add(1)
		return err
	}
	stop := time.AfterFunc(n.cfg.Handshake, func() { conn.Close() })
	defer stop.Stop()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	m, err := conn.Receive(nowhere)
	if err == nil && m.Kind != KindAttach {
		err = fmt.Errorf("first message is of kind %d: %w", m.Kind, ErrProtocol)
	}
	if err != nil {
		return n.judge(child, "", err)
	}
	e, err := n.accept(ctx, conn, child, m)
	if err != nil {
		n.counters.Refused.Add(1)
		_ = conn.Send(Message{Kind: KindRefuse, Reason: reasonOf(err)})
		return fmt.Errorf("attachment of %s: %w", child, err)
	}
	stop.Stop()
	return n.judge(child, e.share.image.Digest(), e.run())
}

// nowhere is the place of data where there may be none.
func nowhere(Message) []byte { return nil }

// accept makes the edge that a child asks for.
func (n *Node) accept(ctx context.Context, conn Conn, child PeerID, m Message) (*edge, error) {
	s := n.share(digest.Digest(m.Image))
	if s == nil {
		return nil, fmt.Errorf("image %q: %w", m.Image, blockfmt.ErrNotFound)
	}
	if int(m.Count) != s.image.StripeCount() || m.Stripes>>m.Count != 0 {
		return nil, fmt.Errorf("stripes %#x of %d, want %d: %w", m.Stripes, m.Count, s.image.StripeCount(), blockfmt.ErrUnsupported)
	}
	e := newEdge(ctx, s, conn, edgeKey{child, m.Stripes}, m.Epoch)
	if !n.track(e, child, n.cfg.Edges) {
		return nil, fmt.Errorf("more than %d edges: %w", n.cfg.Edges, blockfmt.ErrTransient)
	}
	if err := s.admit(e); err != nil {
		n.untrack(e)
		return nil, err
	}
	return e, nil
}

// judge cuts off a peer if err says that it violated the protocol or sent wrong bytes.
func (n *Node) judge(peer PeerID, image digest.Digest, err error) error {
	if isViolation(err) {
		n.cutOff(peer, image, err)
	}
	return err
}
