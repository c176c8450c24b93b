package lane

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// Client sends requests. It is safe for concurrent use.
type Client struct {
	conn io.ReadWriteCloser
	out  *writer
	done chan struct{} // closed when err is set, and nothing is read any more

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	err     error
}

// call is a request that waits for its answer.
type call struct {
	answer Answer
	begun  bool
	err    error
	over   chan struct{} // of size 1
}

// Answer to a request.
type Answer struct {
	Status int
	Header http.Header // trailers included
	Body   []byte
}

// NewClient returns a Client on a connection, which it owns. The caller closes the Client.
func NewClient(conn io.ReadWriteCloser) *Client {
	c := &Client{conn: conn, out: newWriter(conn), done: make(chan struct{}), waiting: map[uint64]*call{}}
	go c.read()
	return c
}

// Close ends all requests, and returns when nothing is read any more.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// ErrClosed says that the connection is gone. Whether the request was answered is not known.
var ErrClosed = errors.New("lane: connection closed")

// Do sends a request and waits for its answer. Errors are those of ctx, ErrTooLarge, or wrap ErrClosed.
func (c *Client) Do(ctx context.Context, path string, header http.Header, body []byte) (Answer, error) {
	head := appendHeader(appendString(make([]byte, 0, 512), path), header)
	if len(body) > MaxRequest || len(head) > maxHeader {
		return Answer{}, fmt.Errorf("%w: request of %d bytes, header of %d", ErrTooLarge, len(body), len(head))
	}
	r := &call{over: make(chan struct{}, 1)}
	id, err := c.begin(r)
	if err != nil {
		return Answer{}, err
	}
	if err := c.out.write(kindRequest, id, head, body); err != nil {
		c.end(id)
		return Answer{}, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	select {
	case <-r.over:
		return r.answer, r.err
	case <-ctx.Done():
		c.end(id)
		c.out.write(kindCancel, id) //nolint:errcheck // then nobody is there to be told
		return Answer{}, context.Cause(ctx)
	}
}

func (c *Client) begin(r *call) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.next++
	c.waiting[c.next] = r
	return c.next, nil
}

func (c *Client) end(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// read takes answers until the connection ends.
func (c *Client) read() {
	from := bufio.NewReaderSize(c.conn, buffered)
	var err error
	for err == nil {
		var f frame
		if f, err = readFrame(from); err == nil {
			err = c.take(f)
		}
	}
	c.conn.Close() //nolint:errcheck // it is over
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	for id, r := range c.waiting {
		delete(c.waiting, id)
		r.err = c.err
		r.over <- struct{}{}
	}
	close(c.done)
}

// take takes a part of an answer. Those that nobody waits for any more are thrown away.
func (c *Client) take(f frame) error {
	if f.kind != kindPart && f.kind != kindEnd {
		return fmt.Errorf("%w: frame of kind %d", ErrProtocol, f.kind)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.waiting[f.id]
	if r == nil {
		return nil
	}
	body := f.payload
	if !r.begun {
		if len(body) < 2 {
			return fmt.Errorf("%w: answer without status", ErrProtocol)
		}
		var err error
		r.begun, r.answer.Status = true, int(binary.BigEndian.Uint16(body))
		if r.answer.Header, body, err = cutHeader(body[2:]); err != nil {
			return err
		}
		r.answer.Body = body
	} else {
		r.answer.Body = append(r.answer.Body, body...)
	}
	if len(r.answer.Body) > MaxAnswer {
		return fmt.Errorf("%w: answer of more than %d bytes", ErrProtocol, MaxAnswer)
	}
	if f.kind == kindEnd {
		delete(c.waiting, f.id)
		r.over <- struct{}{}
	}
	return nil
}
