package treesim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// A Link is what connects a host: bytes a second each way. 0 is no limit.
type Link struct{ Up, Down int64 }

// took returns how long so many bytes take at a rate.
func took(bytes int, rate int64) time.Duration {
	if rate <= 0 {
		return 0
	}
	return time.Duration(float64(bytes) / float64(rate) * 1e9)
}

// host is a machine on the network. All is under Network.mu.
type host struct {
	net    *Network
	id     stream.PeerID
	number int
	link   Link
	accept func(stream.Conn, stream.PeerID) // nil: nothing runs there
	dials  map[*host]uint64                 // so far, by the other host
	linked map[*host]bool                   // there is a connection
	conns  map[*conn]struct{}

	ring    []*flow       // that have something to send, in the order of their turns
	upFree  time.Duration // when the uplink has sent what it was given
	planned bool          // an event at upFree
	sent    int64         // bytes of blocks

	downFree time.Duration // when the downlink will have delivered all that is on its way
	waiting  []*flow       // for room in front of the downlink
	drains   bool          // an event when there is room

	stalled bool
	side    int
}

// Add connects a host. accept is called, on a goroutine of its own, for each edge to it.
func (n *Network) Add(id stream.PeerID, link Link, accept func(conn stream.Conn, from stream.PeerID)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[id]; h != nil { // is back
		h.link, h.accept = link, accept
		return
	}
	h := &host{net: n, id: id, number: len(n.order), link: link, accept: accept, dials: map[*host]uint64{}, linked: map[*host]bool{},
		conns: map[*conn]struct{}{}}
	n.hosts[id] = h
	n.order = append(n.order, h)
}

// reaches says whether a message gets from one host to another now; mu is held.
func (n *Network) reaches(from, to *host) bool {
	return !from.stalled && !to.stalled && (!n.split || from.side == to.side)
}

// Reaches says whether a message gets from one host to another now.
func (n *Network) Reaches(from, to stream.PeerID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, b := n.hosts[from], n.hosts[to]
	return a != nil && b != nil && n.reaches(a, b)
}

// Crash ends what runs on a host: its edges break, and nobody reaches it until it is added again.
func (n *Network) Crash(id stream.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[id]
	h.accept = nil
	h.breakConns()
	for other := range h.linked {
		delete(other.linked, h)
	}
	clear(h.linked)
}

// Stall keeps a host from sending and receiving, or lets it go on. Its edges stay.
func (n *Network) Stall(id stream.PeerID, stalled bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[id].stalled = stalled
	n.resume()
}

// SetLink changes a host's rates.
func (n *Network) SetLink(id stream.PeerID, link Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[id].link = link
}

// Split keeps the hosts of different sides from reaching each other.
func (n *Network) Split(side func(id stream.PeerID) int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.order {
		h.side = side(h.id)
	}
	n.split = true
}

// Heal ends a Split.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.split = false
	n.resume()
}

// resume has everything sent and delivered that can be again; mu is held.
func (n *Network) resume() {
	now := n.Now()
	for _, h := range n.order {
		for c := range h.conns {
			for _, f := range []*flow{c.out, c.in} {
				f.release(now)
				f.since = now
				f.renew()
			}
		}
	}
	n.look()
}

// Sent returns how many bytes of blocks left a host.
func (n *Network) Sent(id stream.PeerID) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[id].sent
}

// Edges returns how many ends of edges are open.
func (n *Network) Edges() (ends int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.order {
		ends += len(h.conns)
	}
	return ends
}

func (n *Network) breakAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.order {
		h.accept = nil
		h.breakConns()
	}
}

func (h *host) breakConns() {
	for c := range h.conns {
		c.abort()
	}
}

// Trips of a message to a host and back until an edge is there: TCP, TLS and the stream for the first one, then the stream
// alone.
const (
	firstTrips = 3
	laterTrips = 1
)

// Dial opens an edge from one host to another.
func (n *Network) Dial(ctx context.Context, from, to stream.PeerID) (stream.Conn, error) {
	ctx, stop := context.WithTimeoutCause(ctx, n.cfg.DialTimeout, fmt.Errorf("%s does not answer: %w", to, blockfmt.ErrTransient))
	defer stop()
	for trips := 0; ; trips++ {
		c, err := n.knock(from, to, trips)
		if c != nil || err != nil {
			return c, err
		}
		timer := time.NewTimer(2 * n.cfg.Delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// knock returns the edge when enough trips were made, nil if not yet.
func (n *Network) knock(from, to stream.PeerID, trips int) (stream.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, b := n.hosts[from], n.hosts[to]
	if a == nil || a.accept == nil {
		return nil, fmt.Errorf("%s is not there: %w", from, blockfmt.ErrTransient)
	}
	need := firstTrips
	if b != nil && a.linked[b] {
		need = laterTrips
	}
	switch {
	case trips == 0, b != nil && !n.reaches(a, b):
		return nil, nil
	case b == nil || b.accept == nil:
		return nil, fmt.Errorf("%s refuses the connection: %w", to, blockfmt.ErrTransient)
	case trips < need:
		return nil, nil
	}
	a.linked[b], b.linked[a] = true, true
	return n.open(a, b), nil
}

// open makes an edge and has it served; mu is held.
func (n *Network) open(a, b *host) *conn {
	a.dials[b]++
	key := uint64(a.number)<<44 | uint64(b.number)<<24 | (a.dials[b]&0x7fffff)<<1
	there, back := newFlow(a, b, key), newFlow(b, a, key|1)
	near, far := &conn{host: a, out: there, in: back}, &conn{host: b, out: back, in: there}
	there.end, back.end = far, near
	a.conns[near], b.conns[far] = struct{}{}, struct{}{}
	accept := b.accept
	n.wg.Go(func() {
		accept(far, a.id)
		far.Close()
	})
	return near
}

// serve gives the uplink to the flows in turn, as long as it is free; Network.mu is held.
func (h *host) serve(now time.Duration) {
	for len(h.ring) > 0 && !h.stalled && h.upFree <= now {
		f := h.next()
		if f.blocked(now) {
			continue
		}
		f.transmit(now)
		f.kick()
	}
	if len(h.ring) > 0 && !h.stalled && !h.planned {
		h.planned = true
		h.net.at(h.upFree, uint64(h.number), (*uplink)(h))
	}
}

// next takes the flow off the ring whose turn it is.
func (h *host) next() *flow {
	at := 0
	if h.net.cfg.FIFO {
		for i, f := range h.ring {
			if f.before(h.ring[at]) {
				at = i
			}
		}
	}
	f := h.ring[at]
	h.ring = slices.Delete(h.ring, at, at+1)
	f.listed = false
	return f
}

// uplink is a host whose uplink is free again.
type uplink host

func (u *uplink) happen(now time.Duration) {
	h := (*host)(u)
	h.planned = false
	h.serve(now)
}

// full says whether a downlink has no room for what would arrive from now on, and plans to tell f when it has.
func (h *host) full(f *flow, now time.Duration) bool {
	room := h.downFree - took(h.net.cfg.Queue, h.link.Down) - h.net.cfg.Delay
	if room <= now {
		return false
	}
	h.waiting = append(h.waiting, f)
	f.listed = true
	if !h.drains {
		h.drains = true
		h.net.at(room, uint64(h.number), (*downlink)(h))
	}
	return true
}

// downlink is a host with room in front of its downlink.
type downlink host

func (d *downlink) happen(now time.Duration) {
	h := (*host)(d)
	h.drains = false
	list := h.waiting
	h.waiting = nil
	for _, f := range list {
		f.listed = false
		f.since = now
		f.kick()
		f.from.serve(now)
	}
}
