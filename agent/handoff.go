package agent

import (
	"context"
	"net"
	"sync"
)

// handoff is a net.Listener of connections that somebody else accepts.
type handoff struct {
	conns  chan net.Conn
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newHandoff(most int) *handoff {
	return &handoff{conns: make(chan net.Conn), free: make(chan struct{}, most), closed: make(chan struct{})}
}

// give hands a connection over and waits until it is closed, or closes it when ctx ends.
func (l *handoff) give(ctx context.Context, conn net.Conn) {
	select {
	case l.free <- struct{}{}:
		defer func() { <-l.free }()
	default:
		return // the peer tries again
	}
	given := &givenConn{Conn: conn, done: make(chan struct{})}
	select {
	case l.conns <- given:
	case <-l.closed:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-given.done:
	case <-ctx.Done():
		_ = conn.Close()
		<-given.done
	}
}

// givenConn says when it is closed.
type givenConn struct {
	net.Conn
	done chan struct{}
	once sync.Once
}

func (c *givenConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// Accept implements net.Listener.
func (l *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *handoff) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *handoff) Addr() net.Addr { return &net.UnixAddr{Name: convertedProtocol, Net: "unix"} }
