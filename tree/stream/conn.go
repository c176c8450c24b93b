package stream

import (
	"io"
	"sync"
)

// A Conn carries the messages of one edge, in order and without loss, until it ends.
type Conn interface {
	// Send blocks while the other side or the network is behind; that is the only back pressure there is. One call at
	// a time. Data is not used after it returns, or is handed over as it is and never changed.
	Send(m Message) error
	// Receive returns the next message, io.EOF after the last one. A Conn that has the data of a block in no memory that
	// it could hand over reads it into what place returns, m.Length bytes, and drops it if that is nil. One call at a time.
	Receive(place func(m Message) []byte) (Message, error)
	// Close ends both directions and every call that is under way. What was sent before may or may not arrive.
	Close() error
}

// Pipe returns the two ends of a Conn in memory, which takes a message only when the other side receives it.
func Pipe() (Conn, Conn) {
	there, back := make(chan Message), make(chan Message)
	p := &pipe{closed: make(chan struct{})}
	return &pipeEnd{p, there, back}, &pipeEnd{p, back, there}
}

type pipe struct {
	once   sync.Once
	closed chan struct{}
}

type pipeEnd struct {
	*pipe
	out chan<- Message
	in  <-chan Message
}

func (p *pipeEnd) Send(m Message) error {
	select {
	case <-p.closed:
		return io.ErrClosedPipe
	default:
	}
	select {
	case p.out <- m:
		return nil
	case <-p.closed:
		return io.ErrClosedPipe
	}
}

func (p *pipeEnd) Receive(func(Message) []byte) (Message, error) {
	select {
	case m := <-p.in:
		return m, nil
	case <-p.closed:
		return Message{}, io.EOF
	}
}

func (p *pipeEnd) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
