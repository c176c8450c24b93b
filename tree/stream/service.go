package stream

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// A Service serves something else than blocks to a peer that was admitted, over a connection of its own. It closes the connection before it
// returns, and returns soon after ctx has ended. It bounds what the peer asks for. Safe for concurrent use.
type Service func(ctx context.Context, conn net.Conn, peer PeerID)

// serveOther serves a stream that a peer has opened for a service.
func (h *Host) serveOther(ctx context.Context, serve Service, s network.Stream, peer PeerID) {
	conn := newServiceConn(h, s, peer)
	defer conn.Close()
	serve(ctx, conn, peer)
}

// DialService opens a connection to a service of a peer. When it returns, each side has admitted the other.
func (h *Host) DialService(ctx context.Context, service string, to Address) (net.Conn, error) {
	s, err := h.stream(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to.ID, err)
	}
	conn := newServiceConn(h, s, to.ID)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = conn.greet(service)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: %w", to.ID, err)
	}
	return conn, nil
}

// Upload waits until bytes of a service may be sent, behind what children wait for.
func (n *Node) Upload(ctx context.Context, bytes int) error {
	if n.up == nil {
		return ctx.Err()
	}
	return n.up.take(ctx, LaneBackground, bytes)
}

// serviceConn is a stream as a net.Conn.
type serviceConn struct {
	endable
	r    *bufio.Reader
	peer PeerID
}

func newServiceConn(h *Host, s network.Stream, peer PeerID) *serviceConn {
	return &serviceConn{endable{s, h}, bufio.NewReaderSize(s, 4<<10), peer}
}

// greet sends the preface and reads the answer.
func (c *serviceConn) greet(service string) error {
	if err := c.SetDeadline(time.Now().Add(c.host.cfg.Node.cfg.Handshake)); err != nil {
		return err
	}
	if err := c.host.sendPreface(c, service); err != nil {
		return err
	}
	if err := c.host.checkAnswer(c.r, service, c.peer); err != nil {
		return err
	}
	visitOf(c.Conn()).admit()
	return c.SetDeadline(time.Time{})
}

func (c *serviceConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// LocalAddr implements net.Conn.
func (c *serviceConn) LocalAddr() net.Addr { return peerAddr(c.host.ID()) }

// RemoteAddr implements net.Conn.
func (c *serviceConn) RemoteAddr() net.Addr { return peerAddr(c.peer) }

// peerAddr is a peer as an address.
type peerAddr PeerID

func (peerAddr) Network() string  { return "libp2p" }
func (a peerAddr) String() string { return string(a) }
