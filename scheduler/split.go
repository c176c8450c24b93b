package scheduler

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// split divides the connections of one listener: those that begin with a TLS handshake, and those that do not, which are served if they
// come from this machine. So users on the machine need no certificates, and there is one address for all.
type split struct {
	net.Listener // of the connections that are let in
	secure, open chan net.Conn
	done         chan struct{}
	close        func()
}

// firstByteTimeout bounds the wait for what a connection is.
const firstByteTimeout = headerTimeout

// firstOfTLS is the first byte of a TLS handshake (RFC 8446, 5.1).
const firstOfTLS = 0x16

func newSplit(l net.Listener) *split {
	s := &split{Listener: l, secure: make(chan net.Conn), open: make(chan net.Conn), done: make(chan struct{})}
	s.close = sync.OnceFunc(func() { close(s.done); l.Close() })
	return s
}

// run accepts until the listener is closed.
func (s *split) run(group *errgroup.Group) {
	group.Go(func() error {
		defer s.close()
		for {
			c, err := s.Listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			group.Go(func() error { s.sort(c); return nil })
		}
	})
}

// sort finds out what a connection is.
func (s *split) sort(c net.Conn) {
	first := make([]byte, 1)
	c.SetReadDeadline(time.Now().Add(firstByteTimeout)) //nolint:errcheck // Read says it
	if _, err := c.Read(first); err != nil {
		c.Close()
		return
	}
	c.SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	to := s.secure
	if first[0] != firstOfTLS && isLocal(c.RemoteAddr()) {
		to = s.open
	}
	select {
	case to <- &begun{Conn: c, first: first}:
	case <-s.done:
		c.Close()
	}
}

// isLocal says whether a connection comes from this machine: over loopback. An own address that it comes from would not do, because
// others' packets can be made to have it by address translation.
func isLocal(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// begun is a connection of which the beginning was read.
type begun struct {
	net.Conn
	first []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) == 0 || len(p) == 0 {
		return b.Conn.Read(p)
	}
	n := copy(p, b.first)
	b.first = b.first[n:]
	return n, nil
}

// part is one kind of connections, as a net.Listener. Closing it closes both.
type part struct {
	*split
	from chan net.Conn
}

func (p part) Accept() (net.Conn, error) {
	select {
	case c := <-p.from:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p part) Close() error { p.close(); return nil }

// users returns the server of the API of users for connections of this machine.
func (f *functions) users() *http.Server {
	return &http.Server{Handler: f.open, ReadHeaderTimeout: headerTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: quiet(f.server.cfg.Log)}
}
