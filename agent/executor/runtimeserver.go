package executor

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRequestHeader bounds the header of a program's request, in bytes.
	maxRequestHeader = 64 << 10
	// maxProgramConns is how many connections a program may have.
	maxProgramConns = 64
	// aliveEvery is how often a program that waits is looked after: it may have closed the connection.
	aliveEvery = 10 * time.Second
	// smallBody is up to where a body is copied behind its header, for one write.
	smallBody = 4 << 10
)

// runtimeServer serves HTTP/1.1 to the program of one instance. net/http's server reads in the background while a handler runs, to notice
// that the client has gone, which wakes two more goroutines for each request; here that is seen when it matters. A handler
// runs on its connection's goroutine, reads the body of its request as it likes, and answers once.
type runtimeServer struct {
	handle func(c *runtimeConn, r *http.Request) error

	conns sync.WaitGroup
	mu    sync.Mutex
	open  map[*runtimeConn]bool
	ended bool
}

// serve accepts connections until the listener is closed.
func (s *runtimeServer) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		c := newRuntimeConn(conn)
		if !s.add(c) {
			conn.Close()
			continue
		}
		s.conns.Go(func() {
			defer s.remove(c)
			for s.next(c) == nil {
			}
		})
	}
}

func (s *runtimeServer) add(c *runtimeConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.open) >= maxProgramConns {
		return false
	}
	s.open[c] = true
	return true
}

func (s *runtimeServer) remove(c *runtimeConn) {
	c.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// close ends all connections and waits for their handlers.
func (s *runtimeServer) close() {
	s.mu.Lock()
	s.ended = true
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range open {
		c.conn.Close()
	}
	s.conns.Wait()
}

// errLast says that the connection ends with this request.
var errLast = errors.New("last request")

// next serves one request.
func (s *runtimeServer) next(c *runtimeConn) error {
	c.limit.N = maxRequestHeader
	r, err := http.ReadRequest(c.reader)
	if err != nil {
		if c.limit.N <= 0 {
			_ = c.refuse(http.StatusRequestHeaderFieldsTooLarge, "InvalidRequest", "the request's header is too large") // it ends anyway
		} else if err != io.EOF && !errors.Is(err, net.ErrClosed) {
			_ = c.refuse(http.StatusBadRequest, "InvalidRequest", err.Error())
		}
		return err
	}
	c.limit.N = 1 << 62
	if r.Header.Get("Expect") == "100-continue" {
		if _, err := io.WriteString(c.conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return err
		}
	}
	if err := s.handle(c, r); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, r.Body, smallBody); err != io.EOF || r.Close || !r.ProtoAtLeast(1, 1) {
		return errLast
	}
	return nil
}

// runtimeConn is a connection of the program. For one goroutine, but close.
type runtimeConn struct {
	conn   net.Conn
	limit  *io.LimitedReader
	reader *bufio.Reader
	out    []byte
}

func newRuntimeConn(conn net.Conn) *runtimeConn {
	limit := &io.LimitedReader{R: conn}
	return &runtimeConn{conn: conn, limit: limit, reader: bufio.NewReader(limit)}
}

// head begins an answer, whose header fields the caller adds with field.
func (c *runtimeConn) head(status int) {
	c.out = append(c.out[:0], "HTTP/1.1 "...)
	c.out = strconv.AppendInt(c.out, int64(status), 10)
	c.out = append(c.out, ' ')
	c.out = append(c.out, http.StatusText(status)...)
	c.out = append(c.out, "\r\n"...)
	c.field("Content-Type", "application/json")
}

// field adds a header field. What would end it is replaced by spaces.
func (c *runtimeConn) field(name, value string) {
	c.out = append(c.out, name...)
	c.out = append(c.out, ": "...)
	begin := len(c.out)
	c.out = append(c.out, value...)
	for i, b := range c.out[begin:] {
		if b < ' ' && b != '\t' || b == 0x7f {
			c.out[begin+i] = ' '
		}
	}
	c.out = append(c.out, "\r\n"...)
}

// send ends the header and writes it with the body.
func (c *runtimeConn) send(body []byte) error {
	c.field("Content-Length", strconv.Itoa(len(body)))
	c.out = append(c.out, "\r\n"...)
	if len(body) <= smallBody {
		c.out = append(c.out, body...)
		_, err := c.conn.Write(c.out)
		return err
	}
	both := net.Buffers{c.out, body}
	_, err := both.WriteTo(c.conn)
	return err
}

// alive says whether the program still has the connection.
func (c *runtimeConn) alive() bool {
	if c.reader.Buffered() > 0 {
		return true
	}
	raw, err := c.conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = n > 0 || err == unix.EAGAIN || err == unix.EINTR
		return true
	})
	return err == nil && alive
}
