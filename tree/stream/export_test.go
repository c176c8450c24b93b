package stream

import (
	"context"
	"io"

	"github.com/libp2p/go-libp2p/core/network"
)

// Node returns the node of a share, for tests that know only the share.
func (s *Share) Node() *Node { return s.node }

// Dial opens a stream to another host, for tests that speak the protocol themselves.
func (h *Host) Dial(ctx context.Context, to Address) (Conn, error) { return h.dial(ctx, to) }

// DialBare opens a stream to another host and sends nothing, for tests that write prefaces themselves.
func (h *Host) DialBare(ctx context.Context, to Address) (io.ReadWriteCloser, error) {
	return h.stream(ctx, to)
}

// HandleWith makes the host give incoming streams to serve instead of its node.
func (h *Host) HandleWith(serve func(ctx context.Context, c Conn, child PeerID) error) {
	h.serve = serve
}

// HandleBare makes the host that runs give incoming streams to handle as they are.
func (h *Host) HandleBare(handle func(io.ReadWriteCloser)) {
	h.swarm.SetStreamHandler(func(s network.Stream) { handle(s) })
}

// Guests returns how many incoming connections are of strangers, and how many streams and prefaces others have open.
func (h *Host) Guests() (strangers, streams, prefaces int) {
	h.guests.mu.Lock()
	defer h.guests.mu.Unlock()
	for _, n := range h.guests.streams {
		streams += n
	}
	return h.guests.strangers, streams, h.guests.prefaces
}

// Connections returns how many connections there are.
func (h *Host) Connections() int { return len(h.swarm.Conns()) }

// Bans returns how many peers are remembered to be cut off.
func (n *Node) Bans() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.banned)
}
