package stream

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Bounds of what others may open; what exceeds them is refused, and the peer may try again.
const (
	maxStrangers     = 256  // incoming connections of which nobody was admitted yet
	maxStrangersFrom = 64   // of these, from one address
	maxConnections   = 4    // incoming connections of a peer
	maxPrefaces      = 1024 // streams whose peer is not admitted yet
	maxRefusals      = 8    // streams that are refused on a connection before it is closed
)

// guests keeps what others open within bounds, as libp2p's resource manager: it is asked before a connection or stream that
// comes in takes anything, and told when it has ended.
type guests struct {
	network.NullResourceManager
	streamsOf int           // incoming streams that a peer may have
	patience  time.Duration // until a connection has an admitted stream

	mu        sync.Mutex
	strangers int
	from      map[netip.Addr]int // strangers
	conns     map[peer.ID]int    // incoming
	streams   map[peer.ID]int    // incoming
	prefaces  int
}

// newGuests returns the bounds of a node. A peer may have more streams than edges, because those beyond are refused with a
// reason.
func newGuests(cfg NodeConfig) *guests {
	return &guests{streamsOf: 2 * cfg.Edges, patience: cfg.Handshake,
		from: map[netip.Addr]int{}, conns: map[peer.ID]int{}, streams: map[peer.ID]int{}}
}

// tooMany is the error for what exceeds a bound.
func tooMany(what string, bound int) error {
	return fmt.Errorf("more than %d %s: %w", bound, what, network.ErrResourceLimitExceeded)
}

func (g *guests) OpenConnection(dir network.Direction, _ bool, endpoint ma.Multiaddr) (network.ConnManagementScope, error) {
	if dir == network.DirOutbound {
		return &visit{}, nil
	}
	v := &visit{guests: g, stranger: true}
	if at, err := toAddrPort(endpoint); err == nil {
		v.from = at.Addr()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.strangers >= maxStrangers {
		return nil, tooMany("connections that are not admitted", maxStrangers)
	}
	if g.from[v.from] >= maxStrangersFrom {
		return nil, tooMany(fmt.Sprintf("connections from %s that are not admitted", v.from), maxStrangersFrom)
	}
	g.strangers++
	g.from[v.from]++
	return v, nil
}

func (g *guests) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if dir == network.DirOutbound {
		return &errand{}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams[p] >= g.streamsOf {
		return nil, tooMany("streams", g.streamsOf)
	}
	g.streams[p]++
	return &errand{guests: g, peer: p}, nil
}

// enter says whether there is room for one more preface, until leave.
func (g *guests) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.prefaces >= maxPrefaces {
		return false
	}
	g.prefaces++
	return true
}

func (g *guests) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.prefaces--
}

// visit is a connection.
type visit struct {
	network.NullScope
	guests *guests // nil: the connection is our own

	// Owned by guests.mu.
	from     netip.Addr
	peer     peer.ID // empty: not known yet
	stranger bool    // no stream was admitted yet
	refusals int
	patience *time.Timer // closes the connection of a stranger
	ended    bool
}

// visitOf returns the visit that a connection is.
func visitOf(c network.Conn) *visit {
	v, _ := c.Scope().(*visit)
	return v
}

// SetPeer counts the connection for its peer.
func (v *visit) SetPeer(p peer.ID) error {
	if v.guests == nil {
		return nil
	}
	v.guests.mu.Lock()
	defer v.guests.mu.Unlock()
	if v.guests.conns[p] >= maxConnections {
		return tooMany("connections of "+p.String(), maxConnections)
	}
	v.peer = p
	v.guests.conns[p]++
	return nil
}

// PeerScope is nil until the peer is known, as libp2p wants it.
func (v *visit) PeerScope() network.PeerScope {
	if v.guests != nil {
		v.guests.mu.Lock()
		defer v.guests.mu.Unlock()
		if v.peer == "" {
			return nil
		}
	}
	return &v.NullScope
}

// await closes a connection on which no stream is admitted in time.
func (v *visit) await(c network.Conn) {
	if v == nil || v.guests == nil {
		return
	}
	v.guests.mu.Lock()
	defer v.guests.mu.Unlock()
	if v.stranger && !v.ended {
		v.patience = time.AfterFunc(v.guests.patience, func() { _ = c.Close() })
	}
}

// admit notes that a stream was admitted.
func (v *visit) admit() {
	if v == nil || v.guests == nil {
		return
	}
	v.guests.mu.Lock()
	defer v.guests.mu.Unlock()
	v.known()
}

// known ends being a stranger; mu is held.
func (v *visit) known() {
	if !v.stranger {
		return
	}
	v.stranger = false
	v.guests.strangers--
	decrease(v.guests.from, v.from)
	if v.patience != nil {
		v.patience.Stop()
	}
}

// refuse notes that a stream was refused, and says whether that were too many.
func (v *visit) refuse() bool {
	if v == nil || v.guests == nil {
		return false
	}
	v.guests.mu.Lock()
	defer v.guests.mu.Unlock()
	v.refusals++
	return v.refusals > maxRefusals
}

// Done ends the visit. It may be called again.
func (v *visit) Done() {
	if v.guests == nil {
		return
	}
	v.guests.mu.Lock()
	defer v.guests.mu.Unlock()
	if v.ended {
		return
	}
	v.ended = true
	v.known()
	if v.peer != "" {
		decrease(v.guests.conns, v.peer)
	}
}

// errand is a stream.
type errand struct {
	network.NullScope
	guests *guests // nil: the stream is our own
	peer   peer.ID
	once   sync.Once
}

// Done ends the errand. It may be called again.
func (e *errand) Done() {
	if e.guests == nil {
		return
	}
	e.once.Do(func() {
		e.guests.mu.Lock()
		defer e.guests.mu.Unlock()
		decrease(e.guests.streams, e.peer)
	})
}

// decrease takes one off a count, which is forgotten at none.
func decrease[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] <= 0 {
		delete(counts, key)
	}
}
