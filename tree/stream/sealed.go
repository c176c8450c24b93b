package stream

import (
	"bufio"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// sealed is TLS that goes to the network in pieces of the size of a write unit. TLS by itself makes a system call, and on its
// way a packet, of each record of 16 KiB, which costs more than the records' encryption.
type sealed struct{ *libp2ptls.Transport }

func (t sealed) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	below := newRecords(insecure)
	c, err := t.Transport.SecureInbound(ctx, below, p)
	return seal(c, below, err)
}

func (t sealed) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	below := newRecords(insecure)
	c, err := t.Transport.SecureOutbound(ctx, below, p)
	return seal(c, below, err)
}

func seal(c sec.SecureConn, below *records, err error) (sec.SecureConn, error) {
	if err != nil {
		return nil, err
	}
	return &sealedConn{c, below}, nil
}

const (
	recordSize = 16 << 10 // bytes of a TLS record, at most
	batchSize  = 64 << 10 // bytes of records that are written, and read, in one call
)

// sealedConn is a TLS connection whose longer writes are one system call each. One Write at a time.
type sealedConn struct {
	sec.SecureConn
	below *records
}

func (c *sealedConn) Write(b []byte) (int, error) {
	if len(b) <= recordSize {
		return c.SecureConn.Write(b)
	}
	c.below.hold()
	n, err := c.SecureConn.Write(b)
	if flushed := c.below.flush(); err == nil {
		err = flushed
	}
	return n, err
}

// farewell is how long a connection that is closed may take to say so. TLS's own 5 s are long for a network that hangs.
const farewell = 100 * time.Millisecond

func (c *sealedConn) Close() error {
	_ = c.below.SetWriteDeadline(time.Now().Add(farewell)) // fails if it is closed
	c.below.closing.Store(true)
	return c.SecureConn.Close()
}

// records is the connection that TLS's records are written to and read from.
type records struct {
	net.Conn
	closing atomic.Bool   // deadlines do not change any more
	r       *bufio.Reader // Read

	mu      sync.Mutex // guards the rest, and the order of writes
	holding bool
	held    []byte
}

func newRecords(c net.Conn) *records {
	return &records{Conn: c, r: bufio.NewReaderSize(c, batchSize)}
}

func (c *records) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *records) SetWriteDeadline(t time.Time) error {
	if c.closing.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// Write keeps what is written until flush, if it is after hold.
func (c *records) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holding {
		return c.Conn.Write(b)
	}
	c.held = append(c.held, b...)
	return len(b), nil
}

func (c *records) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = make([]byte, 0, batchSize+recordSize)
	}
	c.holding = true
}

func (c *records) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = false
	_, err := c.Conn.Write(c.held)
	c.held = c.held[:0]
	return err
}
