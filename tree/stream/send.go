package stream

import (
	"bytes"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// sendAll writes to the child until the edge ends: answers first, then blocks by lane.
func (e *edge) sendAll() {
	beat := time.NewTimer(0)
	defer beat.Stop()
	for e.ctx.Err() == nil {
		lane, n, ok := e.due()
		if !ok {
			var tick <-chan time.Time
			if d, ok := e.wait(); ok {
				beat.Reset(d)
				tick = beat.C
			}
			select {
			case <-e.toSend:
			case <-tick:
				e.beat()
			case <-e.ctx.Done():
			}
			continue
		}
		if n > 0 && !e.pace(lane, n) {
			continue
		}
		if m, b, ok := e.next(); ok {
			if err := e.conn.Send(m); err != nil {
				e.end(err)
			}
			if b != nil && e.copies {
				b.release()
			}
		}
	}
}

// wait says how long there is nothing to say without a cause.
func (e *edge) wait() (time.Duration, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.news != nil && e.news.count() > 0 {
		return time.Until(e.told.Add(e.node.cfg.Beat)), true
	}
	return e.node.cfg.Beat, len(e.wants) > 0
}

// beat tells a child that waits that it does not wait for somebody dead.
func (e *edge) beat() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.wants) > 0 {
		e.control = append(e.control, Message{Kind: KindBusy})
	}
}

// tells says whether it is time for news: blocks come by the hundred, and a child that is not fed needs to know them only in
// trouble. mu is held.
func (e *edge) tells() bool {
	return e.news != nil && e.news.count() > 0 && time.Since(e.told) >= e.node.cfg.Beat
}

// due says what would be sent next; n is 0 for what is no data.
func (e *edge) due() (lane Lane, n int, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.control) > 0 {
		return 0, 0, true
	}
	if lane, o := e.first(); o != nil {
		return lane, min(e.node.cfg.Unit, len(o.bytes.stored)-o.sent), true
	}
	if e.stuck() {
		e.window.probe(e.sent, time.Now(), true)
		e.control = append(e.control, Message{Kind: KindBusy})
		return 0, 0, true
	}
	return 0, 0, e.tells()
}

// stuck says whether the window is full and nothing on its way will open it: it became smaller in the middle of a block.
// mu is held.
func (e *edge) stuck() bool {
	waiting := 0
	for _, queue := range e.ready {
		waiting += len(queue)
	}
	return waiting > 0 && len(e.window.probes) == 0
}

// first returns the most urgent block that there is room for; mu is held. Demand may fill the window twice: it is bounded
// too, but does not wait for the push.
func (e *edge) first() (Lane, *outgoing) {
	room := e.window.room(e.sent)
	for lane, queue := range e.ready {
		if len(queue) > 0 && (room > 0 || Lane(lane) == LaneDemand && room > -e.window.size) {
			return Lane(lane), queue[0]
		}
	}
	return 0, nil
}

// pace waits until n bytes may pass in a lane; false if there may be something more urgent, or the edge ends.
func (e *edge) pace(lane Lane, n int) bool {
	t := e.node.up.queue(lane, n)
	for {
		select {
		case <-t.granted:
			return true
		case <-e.toSend:
			if now, m, ok := e.due(); ok && (m == 0 || now < lane) {
				return e.node.up.withdraw(t)
			}
		case <-e.ctx.Done():
			e.node.up.withdraw(t)
			return false
		}
	}
}

// next returns the message to send now, and the block that its data is of, to be released when it is sent.
func (e *edge) next() (Message, *block, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.control) > 0 {
		m := e.control[0]
		e.control = e.control[1:]
		return m, nil, true
	}
	if lane, o := e.first(); o != nil {
		b := o.bytes.hold()
		return e.piece(lane, o), b, true
	}
	if e.tells() {
		if list := haves(e.news); len(list) > 0 {
			clear(e.news)
			e.told = time.Now()
			e.control = list[1:]
			return list[0], nil, true
		}
	}
	return Message{}, nil, false
}

// piece cuts the next piece off a block; mu is held.
func (e *edge) piece(lane Lane, o *outgoing) Message {
	stored := o.bytes.stored
	n := min(e.node.cfg.Unit, len(stored)-o.sent)
	m := Message{Kind: KindData, Block: o.block, Offset: o.sent, Length: n, Total: len(stored), Data: stored[o.sent : o.sent+n]}
	o.sent += n
	e.sent += uint64(n)
	e.node.counters.BytesUp[lane].Add(int64(n))
	whole := o.sent == len(stored)
	if e.sent-e.probed >= uint64(e.window.size/4) || whole && e.last() {
		m.AckNow = true
		e.probed = e.sent
		e.window.probe(e.sent, time.Now(), !whole || !e.last())
	}
	if whole {
		e.finish(lane, o)
	}
	return m
}

// last says whether nothing follows the piece that was just taken, the last one of its block, so that nothing else will have
// it acknowledged; mu is held.
func (e *edge) last() bool {
	blocks := 0
	for _, queue := range e.ready {
		blocks += len(queue)
	}
	return blocks <= 1
}

// finish notes that all of a block was sent; mu is held.
func (e *edge) finish(lane Lane, o *outgoing) {
	e.node.counters.BlocksUp[lane].Add(1)
	remove(&e.ready[lane], o.block)
	o.bytes.release()
	e.has.add(o.block)
	e.flights = append(e.flights, flight{o.block, e.sent})
	if w := e.wants[o.block]; w != nil && w.out == o {
		e.forget(w)
	}
	if lane == LanePush {
		e.toPush.wake()
	}
}

// maxPushed is how many blocks are ready to be pushed: one is sent while the next one is read.
const maxPushed = 2

// pushAll keeps blocks ready that the child did not ask for.
func (e *edge) pushAll() {
	ctx := blockfmt.Background(e.ctx)
	for {
		number, ok := e.choose()
		if !ok {
			select {
			case <-e.toPush:
				continue
			case <-ctx.Done():
				return
			}
		}
		b, err := e.share.stored(ctx, number)
		e.mu.Lock()
		switch wanted := e.wants[number] != nil; {
		case err != nil && e.pushing == number:
			e.has.remove(number)
		case err == nil && e.pushing == number && !wanted && !e.draining:
			e.ready[LanePush] = append(e.ready[LanePush], &outgoing{block: number, bytes: b})
			e.toSend.wake()
		case err == nil:
			b.release()
		}
		e.pushing = -1
		e.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
	}
}

// choose returns the block to push next, as the feed says.
func (e *edge) choose() (int, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.draining || len(e.ready[LanePush]) >= maxPushed {
		return 0, false
	}
	block, ok := e.feed.Next(func(i int) bool {
		return !e.has.has(i) && e.wants[i] == nil && e.stripes.Has(e.share.image.Stripe(i)) && e.share.has(i)
	})
	if ok {
		e.pushing = block
		e.has.add(block)
	}
	return block, ok
}

// arrived notes that a block came here.
func (e *edge) arrived(i int) {
	if e.news != nil {
		e.mu.Lock()
		if e.news.count() == 0 {
			e.toSend.wake()
		}
		e.news.add(i)
		e.mu.Unlock()
	}
	e.toPush.wake()
}

// missed notes that a sibling demands a block.
func (e *edge) missed(i int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.has.has(i) {
		e.feed.Missed(i)
	}
}

// haves returns the messages that tell of a set of blocks.
func haves(set bitset) (list []Message) {
	for first := 0; first < 64*len(set); first += 8 * maxBitmap {
		bitmap := set.slice(first, maxBitmap)
		rest := bytes.TrimLeft(bitmap, "\x00")
		if len(rest) > 0 {
			list = append(list, Message{Kind: KindHave, Block: first + 8*(len(bitmap)-len(rest)), Data: rest})
		}
	}
	return list
}
