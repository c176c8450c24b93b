package stream

import "context"

// Node returns the node of a share, for tests that know only the share.
func (s *Share) Node() *Node { return s.node }

// Dial opens a stream to another host, for tests that speak the protocol themselves.
func (h *Host) Dial(ctx context.Context, to Address) (Conn, error) { return h.dial(ctx, to) }

// HandleWith makes the host give incoming streams to serve instead of its node.
func (h *Host) HandleWith(serve func(ctx context.Context, c Conn, child PeerID) error) {
	h.serve = serve
}

// Connections returns how many connections there are.
func (h *Host) Connections() int { return len(h.swarm.Conns()) }
