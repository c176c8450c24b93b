package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// A PeerID names an agent: the text form of its libp2p peer ID, or anything else that is unique in a simulation.
type PeerID string

// NodeConfig of a Node. Authorize is needed.
type NodeConfig struct {
	// Authorize says whether a peer may have an edge with this node, in either direction; asked before anything that the
	// peer sends is looked at. Safe for concurrent use.
	Authorize func(PeerID) error
	// Report is told of every peer that is cut off. It must not block. Default: nobody is told.
	Report func(CutOff)
	// Measured is told when much more, or much less, is known of what Uplink and Carried return. It must not block. Default:
	// nobody is told.
	Measured func()
	// Verify reports whether the bytes are the block. Default blockfmt.Verify.
	Verify func(blockfmt.Ref, []byte) error
	// Verifiers is how many blocks are verified and put into stores at a time. Default: twice the processors.
	Verifiers int
	// Up and Down are the most bytes of blocks that are sent and received in a second. Default 0, no limit.
	Up, Down int64
	// Unit is how many bytes of a block are written at a time: what a demand read may have to wait for. Default 64 KiB
	// less the heads, at most MaxUnit.
	Unit int
	// Delay is the queue that the push may cause on the way to a child. Default 25 ms.
	Delay time.Duration
	// MinWindow and MaxWindow bound the bytes on the way to a child. Default 128 KiB and 4 MiB.
	MinWindow, MaxWindow int
	// Staged is how many bytes of blocks that one child asked for may be in memory or under way to it from the Source.
	// Default 8 MiB.
	Staged int64
	// Hot is how many bytes of the latest blocks of a Share are kept in memory for its children. Default 16 MiB.
	Hot int64
	// Edges is how many edges one peer may have as a child of this node. Default 64.
	Edges int
	// Handshake is how long a peer may take for what precedes an edge: connection, credentials and attachment, each. Default
	// 10 s.
	Handshake time.Duration
	// Beat is how often a child hears that what it waits for is being fetched, so that it can tell waiting from death, and
	// how often, at most, one that is not fed hears what came unless it asks for something. Default 50 ms.
	Beat time.Duration
	// Ban is how long a peer that was cut off is refused. Default 10 min.
	Ban time.Duration
	// Drain is how long an edge that was replaced may take to finish what is under way. Default 10 s.
	Drain time.Duration
}

func (c NodeConfig) withDefaults() (NodeConfig, error) {
	if c.Authorize == nil {
		return c, errors.New("stream: NodeConfig.Authorize is missing")
	}
	if c.Report == nil {
		c.Report = func(CutOff) {}
	}
	if c.Measured == nil {
		c.Measured = func() {}
	}
	if c.Verify == nil {
		c.Verify = blockfmt.Verify
	}
	setDefault(&c.Verifiers, 2*runtime.GOMAXPROCS(0))
	setDefault(&c.Unit, 64<<10-headerSize-dataFields-yamuxHeader)
	setDefault(&c.Delay, 25*time.Millisecond)
	setDefault(&c.MinWindow, 128<<10)
	setDefault(&c.MaxWindow, 4<<20)
	setDefault(&c.Staged, 8<<20)
	setDefault(&c.Hot, 16<<20)
	setDefault(&c.Edges, 64)
	setDefault(&c.Handshake, 10*time.Second)
	setDefault(&c.Beat, 50*time.Millisecond)
	setDefault(&c.Ban, 10*time.Minute)
	setDefault(&c.Drain, 10*time.Second)
	if c.Unit < 1 || c.Unit > MaxUnit {
		return c, fmt.Errorf("stream: NodeConfig.Unit is %d bytes, want 1 to %d", c.Unit, MaxUnit)
	}
	return c, nil
}

// yamuxHeader is what yamux puts before a message: with it, a default unit fills a buffer of its pool.
const yamuxHeader = 12

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// A CutOff says who was cut off and why.
type CutOff struct {
	Peer   PeerID
	Image  digest.Digest
	Reason error // wraps blockfmt.ErrCorrupt or ErrProtocol
}

// A Node is one agent's end of all its edges.
type Node struct {
	cfg      NodeConfig
	counters Counters
	up, down *pacer
	slots    chan struct{} // of verification
	buffers  buffers
	sent     meter // of blocks, by all edges, as children acknowledge
	received meter // of blocks that are new here, wherever they came from

	mu     sync.Mutex
	shares map[digest.Digest]*Share
	banned map[PeerID]time.Time // until when
	ends   map[ender]PeerID     // all ends of edges
}

// An ender is an end of an edge.
type ender interface{ end(error) }

// NewNode returns a Node without shares.
func NewNode(cfg NodeConfig) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Node{cfg: cfg, up: newPacer(cfg.Up), down: newPacer(cfg.Down), slots: make(chan struct{}, cfg.Verifiers),
		shares: map[digest.Digest]*Share{}, banned: map[PeerID]time.Time{}, ends: map[ender]PeerID{}}, nil
}

// Counters returns the node's counters.
func (n *Node) Counters() *Counters { return &n.counters }

// Allowed says why a peer may not have an edge with this node, wrapping blockfmt.ErrDenied.
func (n *Node) Allowed(peer PeerID) error {
	n.mu.Lock()
	until, banned := n.banned[peer]
	if banned && time.Now().After(until) {
		delete(n.banned, peer)
		banned = false
	}
	n.mu.Unlock()
	if banned {
		return fmt.Errorf("peer %s was cut off: %w", peer, blockfmt.ErrDenied)
	}
	if err := n.cfg.Authorize(peer); err != nil {
		return fmt.Errorf("peer %s: %w: %w", peer, err, blockfmt.ErrDenied)
	}
	return nil
}

// Drop ends all edges with a peer, such as one that was revoked.
func (n *Node) Drop(peer PeerID) {
	n.dropAll(peer, fmt.Errorf("peer %s is no longer wanted: %w", peer, blockfmt.ErrDenied))
}

func (n *Node) dropAll(peer PeerID, reason error) {
	n.mu.Lock()
	var ends []ender
	for e, p := range n.ends {
		if p == peer {
			ends = append(ends, e)
		}
	}
	n.mu.Unlock()
	for _, e := range ends {
		e.end(reason)
	}
}

// cutOff ends all edges with a peer that cannot be trusted, and refuses it for a while.
func (n *Node) cutOff(peer PeerID, image digest.Digest, reason error) {
	n.mu.Lock()
	_, again := n.banned[peer]
	n.forgetBans()
	n.banned[peer] = time.Now().Add(n.cfg.Ban)
	n.mu.Unlock()
	if !again {
		n.counters.CutOffs.Add(1)
		n.cfg.Report(CutOff{peer, image, reason})
	}
	// Who was wrong once is not asked for more, but that it is gone is no fault of what else was asked.
	n.dropAll(peer, fmt.Errorf("peer %s was cut off: %w", peer, blockfmt.ErrTransient))
}

// maxBans bounds the peers that are remembered to be cut off; beyond, any of them is forgotten.
const maxBans = 4096

// forgetBans makes room for one more ban; mu is held.
func (n *Node) forgetBans() {
	if len(n.banned) < maxBans {
		return
	}
	now := time.Now()
	maps.DeleteFunc(n.banned, func(_ PeerID, until time.Time) bool { return now.After(until) })
	for peer := range n.banned {
		if len(n.banned) < maxBans {
			return
		}
		delete(n.banned, peer)
	}
}

// track remembers an end of an edge; false if the peer has as many as it may, 0: any number.
func (n *Node) track(e ender, peer PeerID, limit int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if limit > 0 {
		for o, p := range n.ends {
			if _, child := o.(*edge); child && p == peer {
				limit--
			}
		}
		if limit <= 0 {
			return false
		}
	}
	n.ends[e] = peer
	return true
}

func (n *Node) untrack(e ender) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ends, e)
}

// Uplink returns how many bytes per second the node's children took together of late while some of them had to wait for more, and
// who had to; 0 if none had to. It is the rate of the uplink, or less where those who waited could not take more.
func (n *Node) Uplink() (rate int64, waiting []PeerID) {
	n.mu.Lock()
	var edges []*edge
	for e := range n.ends {
		if e, ok := e.(*edge); ok {
			edges = append(edges, e)
		}
	}
	n.mu.Unlock()
	for _, e := range edges {
		e.mu.Lock()
		of := e.window.busy.of(time.Now())
		e.mu.Unlock()
		if of > 0 {
			rate, waiting = max(rate, of), append(waiting, e.child)
		}
	}
	slices.Sort(waiting)
	return rate, slices.Compact(waiting)
}

// Carried returns how many bytes of blocks per second the node sent and received at most of late: lower bounds of what its links carry.
func (n *Node) Carried() (sent, received int64) { return n.sent.best(), n.received.best() }

// share returns the share of an image, nil if there is none.
func (n *Node) share(image digest.Digest) *Share {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shares[image]
}

// slot waits for the right to verify a block, and returns it by release.
func (n *Node) slot(ctx context.Context) error {
	select {
	case n.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *Node) release() { <-n.slots }
