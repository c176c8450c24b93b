package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// Attachment says what a child wants of a parent.
type Attachment struct {
	Epoch   uint64  // of the tree
	Stripes Stripes // to be pushed; none for a backup, which is only asked
}

// A Peer is the child's end of an edge: a blockfmt.Source of verified blocks. Reads of the same block share one request; a
// read in the background becomes a demand read with its context.
//
// A read fails with ErrTransient when the edge ends, and with ErrCorrupt if the peer sent wrong bytes for this very block.
type Peer struct {
	node     *Node
	share    *Share
	conn     Conn
	id       PeerID
	attached Attachment
	ctx      context.Context
	cancel   context.CancelCauseFunc
	wg       sync.WaitGroup
	done     chan struct{} // closed when all has ended
	toSend   signal

	mu       sync.Mutex
	entries  map[int]*entry
	queue    [2][]*entry // wants that are not sent, by lane
	asked    int         // wants that were sent and are not answered
	unasked  int         // pushed blocks a part of which is here
	orders   []Message   // cancels, and wants that are in a hurry now
	ack      bool
	news     bitset // what is here and the parent does not know
	remote   bitset // what the parent has
	received uint64
	heard    time.Time // when something came last
	fetched  time.Time // when data came last that was asked for
	leaving  bool      // no more wants
	left     bool      // the parent knows
}

// entry is a block that is on its way to this node, asked for or not.
type entry struct {
	block   int
	ref     blockfmt.Ref
	readers int
	lane    Lane // LanePush without readers
	queued  bool // in Peer.queue
	asks    int  // wants that were sent and are not answered
	unasked bool // counts in Peer.unasked
	buf     []byte
	own     bool // buf is this entry's own memory
	whole   bool // all bytes are here, and are being verified
	moved   time.Time
	done    chan struct{} // closed when stored and err are set
	stored  []byte
	err     error
}

// Attach makes this node a child of the peer at the other end of conn, whose identity was established by the caller. The
// Peer owns conn; Close it when done.
func (s *Share) Attach(ctx context.Context, conn Conn, parent PeerID, at Attachment) (*Peer, error) {
	p := &Peer{node: s.node, share: s, conn: conn, id: parent, attached: at, done: make(chan struct{}), toSend: make(signal, 1),
		entries: map[int]*entry{}, news: newBitset(s.image.Len()), remote: newBitset(s.image.Len()), heard: time.Now()}
	p.ctx, p.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := p.greet(); err != nil {
		p.cancel(err)
		conn.Close()
		return nil, s.node.judge(parent, s.image.Digest(), fmt.Errorf("attach to %s: %w", parent, err))
	}
	if !s.adopt(p) {
		p.cancel(context.Canceled)
		conn.Close()
		return nil, fmt.Errorf("attach to %s: image %s is no longer shared: %w", parent, s.image.Digest(), blockfmt.ErrTransient)
	}
	s.node.track(p, parent, 0)
	p.wg.Go(p.sendAll)
	go p.run()
	return p, nil
}

// greet asks to be attached.
func (p *Peer) greet() error {
	if err := p.node.Allowed(p.id); err != nil {
		return err
	}
	im := p.share.image
	hello := Message{Kind: KindAttach, Image: string(im.Digest()), Epoch: p.attached.Epoch, Count: uint8(im.StripeCount()), Stripes: p.attached.Stripes}
	stop := time.AfterFunc(p.node.cfg.Handshake, func() { p.conn.Close() })
	defer stop.Stop()
	if err := p.conn.Send(hello); err != nil {
		return fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	for {
		m, err := p.conn.Receive(nowhere)
		switch {
		case isViolation(err), errors.Is(err, blockfmt.ErrDenied), errors.Is(err, blockfmt.ErrUnsupported):
			return err
		case err != nil:
			return fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
		case m.Kind != KindHave:
			return p.accepted(m)
		}
		if err := p.parentHas(m); err != nil {
			return err
		}
	}
}

// accepted judges the answer to the wish to be attached.
func (p *Peer) accepted(m Message) error {
	switch {
	case m.Kind == KindRefuse:
		return fmt.Errorf("refused: %w", m.Reason.err())
	case m.Kind != KindAccept || m.Epoch != p.attached.Epoch:
		return fmt.Errorf("answer of kind %d, epoch %d: %w", m.Kind, m.Epoch, ErrProtocol)
	}
	return nil
}

// adopt adds a peer to the share; false if that is closed.
func (s *Share) adopt(p *Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.peers = append(slices.Clip(s.peers), p)
	if p.attached.Stripes != 0 {
		for i := range s.image.Len() {
			if s.have.has(i) && p.fed(i) {
				p.news.add(i)
			}
		}
	}
	return true
}

// fed says whether the parent pushes a block in time.
func (p *Peer) fed(i int) bool { return p.attached.Stripes.Has(p.share.image.Stripe(i)) }

// run receives until the edge ends, and cleans up.
func (p *Peer) run() {
	err := p.receiveAll()
	if isViolation(err) {
		p.node.cutOff(p.id, p.share.image.Digest(), err)
	}
	p.end(err)
	p.wg.Wait()
	p.node.untrack(p)
	p.share.mu.Lock()
	p.share.peers = without(p.share.peers, p)
	p.share.mu.Unlock()
	close(p.done)
}

// end ends all reads and the edge.
func (p *Peer) end(reason error) {
	p.cancel(reason)
	p.mu.Lock()
	p.leaving = true
	for _, e := range p.entries {
		if !e.whole { // those are about to be right or wrong
			p.settle(e, nil, fmt.Errorf("%v from %s: %w: %w", e.ref, p.id, asKind(reason), blockfmt.ErrTransient))
		}
	}
	p.mu.Unlock()
	p.conn.Close()
}

// asKind makes sure that what ended the edge is not taken for a verdict on a block.
func asKind(reason error) error {
	if isViolation(reason) {
		return errors.New(reason.Error())
	}
	return reason
}

// isViolation says whether an error is the peer's fault.
func isViolation(err error) bool {
	return errors.Is(err, ErrProtocol) || errors.Is(err, blockfmt.ErrCorrupt)
}

// ID returns who the peer is.
func (p *Peer) ID() PeerID { return p.id }

// Done returns a channel that is closed when the edge has ended; Err then says why.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Err returns why the edge ended, nil while it has not.
func (p *Peer) Err() error { return context.Cause(p.ctx) }

// Close ends the edge at once and waits until it has.
func (p *Peer) Close() error {
	p.end(fmt.Errorf("edge is closed: %w", context.Canceled))
	<-p.done
	return nil
}

// Drain lets reads that are under way finish, and then ends the edge; at once if ctx ends. New reads fail, so that they go
// elsewhere.
func (p *Peer) Drain(ctx context.Context) error {
	p.leave()
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	return p.Close()
}

// leave makes the edge end when nothing is under way.
func (p *Peer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaving = true
	p.toSend.wake()
}

// Verified implements blockfmt.VerifiedSource.
func (p *Peer) Verified() bool { return true }

// Has says whether the peer has told that it has the block.
func (p *Peer) Has(ref blockfmt.Ref) bool {
	i, ok := p.share.image.Find(ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	return ok && p.remote.has(i)
}

// Progress says how the read of a block gets on.
func (p *Peer) Progress(ref blockfmt.Ref) Progress {
	i, ok := p.share.image.Find(ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	progress := Progress{Asked: p.fetched, Heard: p.heard}
	if e := p.entries[i]; ok && e != nil {
		progress.Block = e.moved
	}
	return progress
}

// Block asks the peer for a block, or waits for one that it pushes already.
func (p *Peer) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	i, ok := p.share.image.Find(ref)
	if !ok {
		return nil, fmt.Errorf("%v in image %s: %w", ref, p.share.image.Digest(), blockfmt.ErrNotFound)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%v: %w", ref, context.Cause(ctx))
	}
	e, err := p.join(i, ref, blockfmt.IsDemand(ctx))
	if err != nil {
		return nil, err
	}
	promoted := blockfmt.Demand(ctx)
	for {
		select {
		case <-e.done:
			return e.stored, e.err
		case <-promoted:
			p.promote(e)
			promoted = nil
		case <-ctx.Done():
			p.quit(e)
			return nil, fmt.Errorf("%v from %s: %w", ref, p.id, context.Cause(ctx))
		}
	}
}

// join returns the entry of a block, which is asked for if it is not on its way.
func (p *Peer) join(i int, ref blockfmt.Ref, demand bool) (*entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving {
		return nil, fmt.Errorf("%v from %s: edge has ended: %w", ref, p.id, blockfmt.ErrTransient)
	}
	e := p.entries[i]
	if e == nil {
		e = &entry{block: i, ref: ref, lane: LanePush, done: make(chan struct{})}
		p.entries[i] = e
	}
	e.readers++
	switch {
	case e.lane == LanePush: // nobody has asked, or nobody wants it any more
		e.lane = LaneBackground
		if demand {
			e.lane = LaneDemand
		}
		if !e.whole {
			p.enqueue(e)
		}
	case demand:
		p.hurry(e)
	}
	return e, nil
}

func (p *Peer) enqueue(e *entry) {
	e.queued = true
	p.queue[e.lane] = append(p.queue[e.lane], e)
	p.toSend.wake()
}

func (p *Peer) dequeue(e *entry) {
	if e.queued {
		e.queued = false
		p.queue[e.lane] = without(p.queue[e.lane], e)
	}
}

func (p *Peer) promote(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hurry(e)
}

// hurry moves a want to the demand lane; mu is held.
func (p *Peer) hurry(e *entry) {
	if e.lane != LaneBackground {
		return
	}
	if e.queued {
		p.dequeue(e)
		e.lane = LaneDemand
		p.enqueue(e)
		return
	}
	e.lane = LaneDemand
	if e.asks > 0 && !e.whole {
		p.orders = append(p.orders, Message{Kind: KindHurry, Block: e.block})
		p.toSend.wake()
	}
}

// quit takes a reader away; without readers the want is canceled.
func (p *Peer) quit(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.readers--; e.readers > 0 || p.entries[e.block] != e || e.whole {
		return
	}
	p.dequeue(e)
	e.lane = LanePush
	p.orders = slices.DeleteFunc(p.orders, func(m Message) bool { return m.Block == e.block && m.Kind == KindHurry })
	switch {
	case e.asks > 0:
		p.orders = append(p.orders, Message{Kind: KindCancel, Block: e.block})
	case len(e.buf) == 0:
		delete(p.entries, e.block)
	}
	p.toSend.wake()
}

// settle ends the reads of a block; mu is held.
func (p *Peer) settle(e *entry, stored []byte, err error) {
	p.dequeue(e)
	p.answered(e, e.asks)
	if e.unasked {
		e.unasked = false
		p.unasked--
	}
	if p.entries[e.block] == e {
		delete(p.entries, e.block)
	}
	e.stored, e.err = stored, err
	close(e.done)
}

// answered frees the slots of wants; mu is held.
func (p *Peer) answered(e *entry, n int) {
	e.asks -= n
	p.asked -= n
	p.toSend.wake()
}

// arrived notes that a block is here that the parent may be about to push.
func (p *Peer) arrived(i int) {
	if !p.fed(i) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.news.add(i)
	p.toSend.wake()
}

// sendAll writes to the parent until the edge ends.
func (p *Peer) sendAll() {
	for {
		list, leave := p.next()
		if leave {
			p.end(fmt.Errorf("edge was left: %w", context.Canceled))
			return
		}
		for _, m := range list {
			if err := p.conn.Send(m); err != nil {
				p.end(err)
				return
			}
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-p.toSend:
		case <-p.ctx.Done():
			return
		}
	}
}

// next returns what is to be sent now, and whether the edge is to be ended instead.
func (p *Peer) next() (list []Message, leave bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ack {
		list = append(list, Message{Kind: KindAck, Received: p.received})
		p.ack = false
	}
	list = append(list, p.orders...)
	p.orders = nil
	for lane, reserve := range []int{0, MaxWants / 4} {
		for len(p.queue[lane]) > 0 && p.asked < MaxWants-reserve {
			e := p.queue[lane][0]
			p.dequeue(e)
			e.asks++
			p.asked++
			list = append(list, Message{Kind: KindWant, Block: e.block, Lane: Lane(lane), Received: p.received})
		}
	}
	if told := haves(p.news); len(told) > 0 {
		clear(p.news)
		list = append(list, told...)
	}
	if p.leaving && !p.left {
		p.left = true
		list = append(list, Message{Kind: KindDetach})
	}
	return list, p.left && len(list) == 0 && p.idle()
}

// idle says whether nobody waits; mu is held.
func (p *Peer) idle() bool {
	for _, e := range p.entries {
		if e.readers > 0 || e.whole {
			return false
		}
	}
	return true
}

// receiveAll takes what the parent sends.
func (p *Peer) receiveAll() error {
	for {
		m, err := p.conn.Receive(p.place)
		if err == nil {
			err = p.take(m)
		}
		switch {
		case err == nil:
		case p.ctx.Err() != nil: // what was on its way is forgotten: the rest of it only looks like a violation
			return context.Cause(p.ctx)
		case isViolation(err):
			return err
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%s closed the edge: %w", p.id, blockfmt.ErrTransient)
		default:
			return fmt.Errorf("edge to %s: %w: %w", p.id, err, blockfmt.ErrTransient)
		}
	}
}
