package treesim

import (
	"io"
	"time"

	"github.com/xylem-project/xylem/tree/stream"
)

// conn is one end of an edge.
type conn struct {
	host    *host
	out, in *flow
}

// flow is one direction of an edge. All but the channels is under Network.mu.
type flow struct {
	from, to *host
	end      *conn  // that receives
	key      uint64 // orders flows

	queue  []*parcel // not wholly sent
	queued int       // bytes of them
	since  time.Duration
	sent   uint64 // segments
	unread int    // bytes that were sent and not taken by the receiver
	last   time.Duration
	held   []*parcel // arrived while the receiver could not be reached
	inbox  []stream.Message
	listed bool // in the ring of from, or waiting for the downlink of to
	fresh  bool // in Network.fresh
	shut   bool // nothing more can be sent
	ended  bool // nothing more comes

	room chan struct{} // there may be room in the queue
	came chan struct{} // there may be something in the inbox
}

// parcel is a message on its way. The last one of a flow carries its end.
type parcel struct {
	flow *flow
	msg  stream.Message
	put  time.Duration // when it was handed over
	size int
	left int // bytes not sent
	last bool
}

func newFlow(from, to *host, key uint64) *flow {
	return &flow{from: from, to: to, key: key, room: make(chan struct{}, 1), came: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// small is what a link sends at once, before the next segments of other edges, as fair queues do.
const small = 1500

func (c *conn) Send(m stream.Message) error {
	n, f := c.host.net, c.out
	for {
		n.mu.Lock()
		if f.shut {
			n.mu.Unlock()
			return io.ErrClosedPipe
		}
		if f.queued == 0 || f.queued+m.Size() <= n.cfg.Buffer {
			f.put(&parcel{flow: f, msg: m, size: m.Size(), left: m.Size()})
			n.mu.Unlock()
			return nil
		}
		n.mu.Unlock()
		<-f.room
	}
}

// put adds a parcel, of which the network takes notice at its next tick; mu is held.
func (f *flow) put(p *parcel) {
	n := f.from.net
	p.put = n.Now()
	if len(f.queue) == 0 {
		f.since = p.put
	}
	f.queue = append(f.queue, p)
	f.queued += p.size
	f.renew()
}

// renew has the network look at the flow at its next tick; mu is held.
func (f *flow) renew() {
	n := f.from.net
	if f.fresh {
		return
	}
	f.fresh = true
	n.fresh = append(n.fresh, f)
	if len(n.fresh) == 1 {
		n.look()
	}
}

func (c *conn) Receive(func(stream.Message) []byte) (stream.Message, error) {
	n, f := c.host.net, c.in
	for {
		n.mu.Lock()
		if len(f.inbox) > 0 {
			m := f.inbox[0]
			f.inbox[0] = stream.Message{}
			f.inbox = f.inbox[1:]
			f.take(m.Size())
			n.mu.Unlock()
			return m, nil
		}
		ended := f.ended
		n.mu.Unlock()
		if ended {
			signal(f.came) // for the next call
			return stream.Message{}, io.EOF
		}
		<-f.came
	}
}

// take makes room for what is to be sent; mu is held.
func (f *flow) take(size int) {
	n := f.from.net
	was := f.unread
	f.unread -= size
	if was >= n.cfg.Window && f.unread < n.cfg.Window {
		f.since = n.Now()
		f.renew()
	}
}

// Close ends the edge for this side at once; the other side learns of it behind all that was sent.
func (c *conn) Close() error {
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.end() {
		c.out.put(&parcel{flow: c.out, size: small / 10, left: small / 10, last: true})
	}
	return nil
}

// abort ends the edge for this side at once, and for the other as soon as it can hear of it; mu is held.
func (c *conn) abort() {
	if c.end() {
		c.out.queue, c.out.queued = nil, 0
		c.out.put(&parcel{flow: c.out, size: small / 10, left: small / 10, last: true})
	}
}

// end ends both directions for this side; false if they were; mu is held.
func (c *conn) end() bool {
	if _, open := c.host.conns[c]; !open {
		return false
	}
	delete(c.host.conns, c)
	was := c.out.shut
	c.out.shut, c.in.ended = true, true
	c.in.inbox, c.in.held = nil, nil
	signal(c.out.room)
	signal(c.in.came)
	return !was
}

// kick gives the flow a turn if it has something to send; mu is held.
func (f *flow) kick() {
	if f.listed || len(f.queue) == 0 {
		return
	}
	f.listed = true
	if f.queue[0].left <= small {
		f.from.ring = append([]*flow{f}, f.from.ring...)
		return
	}
	f.from.ring = append(f.from.ring, f)
}

// before says whether what the flow sends next was handed over before another's; mu is held.
func (f *flow) before(other *flow) bool {
	switch {
	case len(f.queue) == 0 || len(other.queue) == 0:
		return len(f.queue) == 0 && len(other.queue) > 0
	case f.queue[0].put != other.queue[0].put:
		return f.queue[0].put < other.queue[0].put
	}
	return scatter(f.key, uint64(f.queue[0].msg.Block)) < scatter(other.key, uint64(other.queue[0].msg.Block))
}

// blocked says whether the flow has to wait for something other than its uplink, and will be kicked then; mu is held.
func (f *flow) blocked(now time.Duration) bool {
	switch {
	case len(f.queue) == 0, !f.from.net.reaches(f.from, f.to):
		return true
	case f.unread >= f.from.net.cfg.Window && !f.ended:
		return true
	case f.queue[0].left <= small:
		return false
	}
	return f.to.full(f, max(now, f.from.upFree))
}

// transmit sends a segment, and plans when it arrives; mu is held.
func (f *flow) transmit(now time.Duration) {
	n, p := f.from.net, f.queue[0]
	size := min(p.left, n.cfg.Segment)
	start := max(f.from.upFree, f.since)
	f.from.upFree = start + took(size, f.from.link.Up)
	// The downlink passes bits on as they arrive, when it is free.
	arrival := max(f.from.upFree+n.cfg.Delay, max(f.to.downFree, start+n.cfg.Delay)+took(size, f.to.link.Down))
	f.to.downFree = arrival
	if f.sent++; n.lost(f) {
		arrival += n.cfg.Timeout
	}
	f.last = max(f.last, arrival)
	f.unread += size
	f.from.sent -= p.dataSent()
	p.left -= size
	f.from.sent += p.dataSent()
	if p.left == 0 {
		f.queue[0] = nil
		f.queue = f.queue[1:]
		f.queued -= p.size
		f.since = max(f.since, min(now, f.from.upFree))
		n.at(f.last, f.key, p)
		signal(f.room)
	}
}

// dataSent returns how many bytes of data were sent.
func (p *parcel) dataSent() int64 { return int64(min(p.size-p.left, len(p.msg.Data))) }

// lost says whether the latest segment is: by the seed, the edge and its number on it.
func (n *Network) lost(f *flow) bool {
	if n.cfg.Loss == 0 {
		return false
	}
	return float64(scatter(n.cfg.Seed, f.key, f.sent)>>11)/(1<<53) < n.cfg.Loss
}

// scatter returns a number that looks like a random one.
func scatter(words ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, w := range words { // splitmix64
		h += w + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// happen delivers a message that has arrived.
func (p *parcel) happen(now time.Duration) {
	f := p.flow
	switch {
	case f.ended:
	case !f.from.net.reaches(f.from, f.to) || len(f.held) > 0:
		f.held = append(f.held, p)
	case p.last:
		f.finish()
	default:
		f.inbox = append(f.inbox, p.msg)
		signal(f.came)
	}
}

// finish tells the receiver that the other side has closed the edge; mu is held.
func (f *flow) finish() {
	f.ended = true
	signal(f.came)
	back := f.end.out
	back.shut = true
	back.queue, back.queued = nil, 0
	signal(back.room)
}

// release has parcels delivered that were held up; mu is held.
func (f *flow) release(now time.Duration) {
	held := f.held
	f.held = nil
	for _, p := range held {
		f.last = max(f.last, now)
		f.from.net.at(f.last, f.key, p)
	}
}
