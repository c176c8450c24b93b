package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// edge is the parent's end of an edge. Three goroutines work on it: receive takes the child's messages, send writes the
// most urgent data that the window has room for, and push keeps a block ready that the child did not ask for. Each block
// that is asked for is read from the Source in a goroutine of its own.
type edge struct {
	node  *Node
	share *Share
	conn  Conn
	edgeKey
	epoch  uint64
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	done   chan struct{} // closed when run has ended, or will never begin
	toSend signal
	toPush signal

	mu       sync.Mutex
	feed     Feed
	has      bitset    // what the child has, or was sent
	news     bitset    // what came here since the child was told; fed children are not
	told     time.Time // when it was
	control  []Message
	wants    map[int]*want
	waiting  [2][]*want // for room in memory, by lane
	staged   int64      // bytes of blocks that are read or ready, because they are wanted
	ready    [lanes][]*outgoing
	pushing  int // the block that push reads, -1: none
	sent     uint64
	probed   uint64 // what was sent when an acknowledgement was asked for
	flights  []flight
	window   *window
	copies   bool // the Conn does not hold on to data that was sent
	draining bool
	drained  *time.Timer // ends an edge that takes too long
}

// signal wakes one goroutine, which then looks for itself.
type signal chan struct{}

func (s signal) wake() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// want is a block that the child asked for.
type want struct {
	block int
	lane  Lane
	ctx   context.Context // of the read
	stop  context.CancelFunc
	size  int64     // staged, 0 while it waits
	out   *outgoing // when it is ready
}

// outgoing is a block whose bytes are here, a part of which may have been sent. It holds them until it is through.
type outgoing struct {
	block int
	bytes *block
	sent  int
}

// flight is a block that was sent: the child has it when it has received so many bytes.
type flight struct {
	block int
	end   uint64
}

func newEdge(ctx context.Context, s *Share, conn Conn, key edgeKey, epoch uint64) *edge {
	e := &edge{node: s.node, share: s, conn: conn, edgeKey: key, epoch: epoch, done: make(chan struct{}),
		toSend: make(signal, 1), toPush: make(signal, 1), feed: s.cfg.Feed(), has: newBitset(s.image.Len()),
		wants: map[int]*want{}, pushing: -1, window: newWindow(s.node.cfg.Delay, s.node.cfg.MinWindow, s.node.cfg.MaxWindow)}
	e.ctx, e.cancel = context.WithCancelCause(ctx)
	e.window.uplink, e.window.news = &s.node.sent, s.node.cfg.Measured
	_, e.copies = conn.(*wire)
	e.control = append(e.control, Message{Kind: KindAccept, Epoch: epoch})
	if key.stripes == 0 {
		e.news = newBitset(s.image.Len())
	}
	return e
}

// run works until the edge ends. It returns nil if the child left.
func (e *edge) run() error {
	e.tellAll()
	e.wg.Go(e.sendAll)
	if e.stripes != 0 {
		e.wg.Go(e.pushAll)
	}
	err := e.receiveAll()
	e.end(err)
	e.wg.Wait()
	e.mu.Lock()
	if e.drained != nil {
		e.drained.Stop()
	}
	e.mu.Unlock()
	e.node.untrack(e)
	e.share.leave(e)
	close(e.done)
	return err
}

// end ends the edge. It does not wait.
func (e *edge) end(reason error) {
	e.cancel(reason)
	e.conn.Close()
}

// tellAll tells the child what is here, so that it knows whom to ask.
func (e *edge) tellAll() {
	e.share.mu.Lock()
	have := append(bitset(nil), e.share.have...)
	e.share.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.control = append(haves(have), e.control...) // before the acceptance, so that who is attached knows it
}

func (e *edge) receiveAll() error {
	for {
		m, err := e.conn.Receive(nowhere)
		if err == nil {
			err = e.take(m)
		}
		switch {
		case err == nil && !e.flooded():
		case err == nil:
			return fmt.Errorf("%s wants and cancels without taking the answers: %w", e.child, ErrProtocol)
		case isViolation(err):
			return err
		case e.ctx.Err() != nil:
			return context.Cause(e.ctx)
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("edge to %s: %w: %w", e.child, err, blockfmt.ErrTransient)
		}
	}
}

// maxControl bounds the answers that a child has not taken yet: a fair one cannot cause as many.
const maxControl = 4 * MaxWants

func (e *edge) flooded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.control) > maxControl+MaxBlocks/(8*maxBitmap)
}

// take does what the child says.
func (e *edge) take(m Message) error {
	if m.Block >= e.share.image.Len() {
		return fmt.Errorf("block %d of %d: %w", m.Block, e.share.image.Len(), ErrProtocol)
	}
	switch m.Kind {
	case KindWant:
		return e.want(m)
	case KindCancel:
		e.drop(m.Block)
	case KindHurry:
		e.hurry(m.Block)
	case KindHave:
		return e.childHas(m)
	case KindAck:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.acked(m.Received)
	case KindDetach:
		e.drain()
	default:
		return fmt.Errorf("message of kind %d from a child: %w", m.Kind, ErrProtocol)
	}
	return nil
}

// acked notes what has arrived; mu is held.
func (e *edge) acked(received uint64) error {
	if !e.window.ack(received, e.sent, time.Now()) {
		return fmt.Errorf("%d bytes acknowledged of %d: %w", received, e.sent, ErrProtocol)
	}
	for len(e.flights) > 0 && e.flights[0].end <= received {
		e.flights = e.flights[1:]
	}
	e.toSend.wake()
	return nil
}

// want notes that the child asks for a block.
func (e *edge) want(m Message) error {
	if m.Lane == LaneDemand {
		e.share.missed(m.Block, e)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = time.Time{} // who asks a backup had better know what it has
	// What the child had received when it wrote this tells whether what is in flight answers it.
	if err := e.acked(m.Received); err != nil {
		return err
	}
	for _, f := range e.flights {
		if f.block == m.Block {
			return nil
		}
	}
	if e.wants[m.Block] != nil {
		return fmt.Errorf("block %d wanted twice: %w", m.Block, ErrProtocol)
	}
	if len(e.wants) >= MaxWants {
		return fmt.Errorf("more than %d blocks wanted: %w", MaxWants, ErrProtocol)
	}
	e.toSend.wake()
	pushed := remove(&e.ready[LanePush], m.Block)
	if e.draining && pushed == nil { // what is being pushed goes on: a failure would void the first half of it
		e.control = append(e.control, Message{Kind: KindFail, Block: m.Block, Reason: ReasonTransient})
		return nil
	}
	if e.pushing == m.Block { // the answer to this may be through before the push has read the block
		e.pushing = -1
		e.has.remove(m.Block)
	}
	w := &want{block: m.Block, lane: m.Lane, stop: func() {}}
	e.wants[m.Block] = w
	if pushed != nil {
		e.toPush.wake()
		e.isReady(w, pushed)
		return nil
	}
	e.waiting[w.lane] = append(e.waiting[w.lane], w)
	e.readWaiting()
	return nil
}

// readWaiting begins to read what there is room for; mu is held.
func (e *edge) readWaiting() {
	for lane, limit := range []int64{e.node.cfg.Staged, e.node.cfg.Staged * 3 / 4} {
		for len(e.waiting[lane]) > 0 {
			w := e.waiting[lane][0]
			size := e.share.image.Ref(w.block).Length
			if e.staged > 0 && e.staged+size > limit {
				return
			}
			e.waiting[lane] = e.waiting[lane][1:]
			w.size = size
			e.staged += size
			e.read(w)
		}
	}
}

// read gets the bytes of a block; mu is held.
func (e *edge) read(w *want) {
	if b := e.share.inMemory(w.block); b != nil {
		e.isReady(w, &outgoing{block: w.block, bytes: b})
		return
	}
	w.ctx = e.ctx
	if w.lane == LaneBackground {
		w.ctx = blockfmt.Background(w.ctx)
	}
	w.ctx, w.stop = context.WithCancel(w.ctx)
	e.wg.Go(func() {
		defer w.stop()
		stored, err := e.share.read(w.ctx, w.block)
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case e.wants[w.block] != w: // was canceled
		case err != nil:
			e.forget(w)
			e.control = append(e.control, Message{Kind: KindFail, Block: w.block, Reason: reasonOf(err)})
			e.toSend.wake()
		default:
			e.isReady(w, &outgoing{block: w.block, bytes: newBlock(stored)})
		}
	})
}

// isReady queues a wanted block for sending; mu is held.
func (e *edge) isReady(w *want, o *outgoing) {
	w.out = o
	e.ready[w.lane] = append(e.ready[w.lane], o)
	e.toSend.wake()
}

// hurry moves a want to the demand lane.
func (e *edge) hurry(block int) {
	e.share.missed(block, e)
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.wants[block]
	if w == nil || w.lane == LaneDemand {
		return
	}
	switch {
	case w.out != nil:
		remove(&e.ready[w.lane], w.block)
		e.ready[LaneDemand] = append(e.ready[LaneDemand], w.out)
	case w.size == 0:
		e.waiting[w.lane] = without(e.waiting[w.lane], w)
		e.waiting[LaneDemand] = append(e.waiting[LaneDemand], w)
	case w.ctx != nil:
		blockfmt.Promote(w.ctx)
	}
	w.lane = LaneDemand
	e.readWaiting()
	e.toSend.wake()
}

// drop ends a want that the child gave up.
func (e *edge) drop(block int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.wants[block]
	if w == nil {
		return
	}
	e.node.counters.Canceled.Add(1)
	w.stop()
	if w.size == 0 {
		e.waiting[w.lane] = without(e.waiting[w.lane], w)
	}
	if o := remove(&e.ready[w.lane], block); o != nil {
		o.bytes.release()
	}
	e.has.remove(block) // it may be pushed again
	e.forget(w)
	e.toPush.wake()
	e.control = append(e.control, Message{Kind: KindFail, Block: block, Reason: ReasonCanceled})
	e.toSend.wake()
}

// forget frees what a want took; mu is held.
func (e *edge) forget(w *want) {
	delete(e.wants, w.block)
	e.staged -= w.size
	e.readWaiting()
}

// childHas notes what need not be pushed.
func (e *edge) childHas(m Message) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	beyond := false
	each(m.Data, m.Block, func(i int) {
		if beyond = beyond || i >= e.share.image.Len(); beyond {
			return
		}
		e.has.add(i)
		if e.pushing == i {
			e.pushing = -1
		}
		if o := remove(&e.ready[LanePush], i); o != nil {
			o.bytes.release()
			e.toPush.wake()
			if o.sent > 0 {
				e.control = append(e.control, Message{Kind: KindFail, Block: i, Reason: ReasonDropped})
				e.toSend.wake()
			}
		}
	})
	if beyond {
		return fmt.Errorf("bitmap beyond block %d: %w", e.share.image.Len(), ErrProtocol)
	}
	return nil
}

// replace makes the child leave an edge in whose place there is a newer one, when what is under way is done.
func (e *edge) replace() {
	e.drain()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.control = append(e.control, Message{Kind: KindDetach})
	if e.drained == nil {
		e.drained = time.AfterFunc(e.node.cfg.Drain, func() { e.end(fmt.Errorf("edge was replaced: %w", ErrStale)) })
	}
	e.toSend.wake()
}

// drain ends the push; what is wanted is sent, and then the child ends the edge.
func (e *edge) drain() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.draining = true
	if pushed := e.ready[LanePush]; len(pushed) > 0 && pushed[0].sent == 0 {
		e.ready[LanePush] = nil
	} else if len(pushed) > 1 {
		e.ready[LanePush] = pushed[:1]
	}
}

// remove takes a block out of a queue; nil if it is not there.
func remove(queue *[]*outgoing, block int) *outgoing {
	for at, o := range *queue {
		if o.block == block {
			*queue = append((*queue)[:at:at], (*queue)[at+1:]...)
			return o
		}
	}
	return nil
}
