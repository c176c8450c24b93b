package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// take does what the parent says.
func (p *Peer) take(m Message) error {
	if m.Block >= p.share.image.Len() {
		return fmt.Errorf("block %d of %d: %w", m.Block, p.share.image.Len(), ErrProtocol)
	}
	switch m.Kind {
	case KindData:
		return p.data(m)
	case KindFail:
		p.failed(m)
	case KindHave:
		return p.parentHas(m)
	case KindDetach:
		p.leave()
	case KindBusy:
		p.mu.Lock()
		p.heard = time.Now()
		p.ack = true
		p.toSend.wake()
		p.mu.Unlock()
	default:
		return fmt.Errorf("message of kind %d from a parent: %w", m.Kind, ErrProtocol)
	}
	return nil
}

// place returns where the data of a block goes.
func (p *Peer) place(m Message) []byte {
	if m.Block >= p.share.image.Len() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.expect(m)
	if err != nil {
		return nil
	}
	if len(e.buf) == 0 {
		e.buf, e.own = p.buffer(m.Total), true
	}
	return e.buf[m.Offset : m.Offset+m.Length]
}

func (p *Peer) buffer(n int) []byte {
	if p.share.cfg.Recycle {
		return p.node.buffers.get(n)
	}
	return make([]byte, 0, n)
}

// expect returns the entry that a piece of data belongs to, or what is wrong with it; mu is held.
func (p *Peer) expect(m Message) (*entry, error) {
	ref := p.share.image.Ref(m.Block)
	if int64(m.Total) != ref.Length {
		return nil, fmt.Errorf("%v in %d bytes, want %d: %w: %w", ref, m.Total, ref.Length, ErrProtocol, blockfmt.ErrCorrupt)
	}
	e := p.entries[m.Block]
	if e == nil {
		if !p.fed(m.Block) {
			return nil, fmt.Errorf("%v, which nobody asked for: %w", ref, ErrProtocol)
		}
		if p.unasked >= maxUnasked {
			return nil, fmt.Errorf("%d pushed blocks in pieces: %w", p.unasked, ErrProtocol)
		}
		e = &entry{block: m.Block, ref: ref, lane: LanePush, done: make(chan struct{}), unasked: true}
		p.unasked++
		p.entries[m.Block] = e
	}
	if e.whole || m.Offset != len(e.buf) || m.Length <= 0 || m.Length > m.Total-m.Offset {
		return nil, fmt.Errorf("%v: %d bytes at %d, want them at %d of %d: %w", ref, m.Length, m.Offset, len(e.buf), m.Total, ErrProtocol)
	}
	return e, nil
}

// add appends a piece: without a copy if it follows in memory, as it does if it was read into its place, or comes from a
// sender in the same process.
func (e *entry) add(data []byte, total int) {
	switch at := len(e.buf); {
	case at == 0 && !e.own:
		e.buf = data
	case cap(e.buf) >= at+len(data) && &e.buf[:at+1][at] == &data[0]:
		e.buf = e.buf[:at+len(data)]
	default:
		if !e.own {
			e.buf, e.own = append(make([]byte, 0, total), e.buf...), true
		}
		e.buf = append(e.buf, data...)
	}
}

// data takes a piece of a block.
func (p *Peer) data(m Message) error {
	p.mu.Lock()
	e, err := p.expect(m)
	if err != nil {
		p.mu.Unlock()
		return err
	}
	p.received += uint64(m.Length)
	p.heard = time.Now()
	e.moved = p.heard
	if e.readers > 0 {
		p.fetched = p.heard
	}
	e.add(m.Data, m.Total)
	if m.AckNow {
		p.ack = true
		p.toSend.wake()
	}
	lane, whole := e.lane, len(e.buf) == m.Total
	if whole && e.readers == 0 && p.share.has(e.block) {
		p.node.counters.Duplicates.Add(1)
		p.settle(e, nil, nil)
		whole = false
	}
	if e.whole = whole; whole {
		p.dequeue(e)
	}
	p.mu.Unlock()
	p.node.counters.BytesDown[lane].Add(int64(m.Length))
	if whole {
		if err := p.judge(e); err != nil {
			return err
		}
	}
	return p.node.down.take(p.ctx, lane, m.Length)
}

// judge has a block verified that is whole.
func (p *Peer) judge(e *entry) error {
	if err := p.node.slot(p.ctx); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.settle(e, nil, fmt.Errorf("%v from %s: %w: %w", e.ref, p.id, asKind(err), blockfmt.ErrTransient))
		return err
	}
	p.wg.Go(func() {
		defer p.node.release()
		p.verify(e)
	})
	return nil
}

// verify lets a block pass to its readers, or into the store if it has none; or cuts the peer off.
func (p *Peer) verify(e *entry) {
	stored := e.buf[:len(e.buf):len(e.buf)]
	if err := p.node.cfg.Verify(e.ref, stored); err != nil {
		err = fmt.Errorf("from %s: %w", p.id, err)
		p.mu.Lock()
		p.settle(e, nil, err)
		p.mu.Unlock()
		p.node.cutOff(p.id, p.share.image.Digest(), err)
		p.end(err)
		return
	}
	p.mu.Lock()
	readers, lane := e.readers, e.lane
	p.settle(e, stored, nil)
	p.mu.Unlock()
	p.node.counters.BlocksDown[lane].Add(1)
	b := newBlock(stored)
	if readers > 0 { // whose stack keeps it, and who own it
		p.share.arrived(e.block, b, p)
		return
	}
	if e.own && p.share.cfg.Recycle {
		b.buf, b.pool = e.buf, &p.node.buffers
	}
	p.share.keep(context.WithoutCancel(p.ctx), e.block, b, p)
	b.release()
}

// failed takes the answer that a block does not come.
func (p *Peer) failed(m Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[m.Block]
	if e == nil || e.whole {
		return
	}
	e.buf, e.own = nil, false
	if m.Reason != ReasonDropped && e.asks > 0 {
		p.answered(e, 1)
	}
	if e.asks > 0 || e.queued {
		return // a later want will be answered
	}
	p.settle(e, nil, fmt.Errorf("%v from %s: %w", e.ref, p.id, m.Reason.err()))
}

// parentHas notes what the parent has.
func (p *Peer) parentHas(m Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	beyond := false
	each(m.Data, m.Block, func(i int) {
		if beyond = beyond || i >= p.share.image.Len(); !beyond {
			p.remote.add(i)
		}
	})
	if beyond {
		return fmt.Errorf("bitmap beyond block %d: %w", p.share.image.Len(), ErrProtocol)
	}
	return nil
}
