package stream

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Protocol is the libp2p protocol of edges. Its number changes with the frames, which are
//
//	kind 1 byte | length of the rest 4 bytes | fields, as in encode | data
//
// in big-endian order.
const Protocol = "/xylem/blocks/1"

const (
	headerSize  = 5
	dataFields  = 13 // block 4, offset 4, total 4, flags 1
	flagAckNow  = 1
	minMessages = KindAttach
	maxMessages = KindHurry
)

// encode appends the frame's head, all but the data, to b.
func encode(b []byte, m Message) []byte {
	at := len(b)
	b = append(b, byte(m.Kind), 0, 0, 0, 0)
	switch m.Kind {
	case KindAttach:
		b = binary.BigEndian.AppendUint64(b, m.Epoch)
		b = append(b, m.Count)
		b = binary.BigEndian.AppendUint16(b, uint16(m.Stripes))
		b = append(b, m.Image...)
	case KindAccept:
		b = binary.BigEndian.AppendUint64(b, m.Epoch)
	case KindRefuse:
		b = append(b, byte(m.Reason))
	case KindWant:
		b = binary.BigEndian.AppendUint32(b, uint32(m.Block))
		b = append(b, byte(m.Lane))
		b = binary.BigEndian.AppendUint64(b, m.Received)
	case KindCancel, KindHave, KindHurry:
		b = binary.BigEndian.AppendUint32(b, uint32(m.Block))
	case KindData:
		b = binary.BigEndian.AppendUint32(b, uint32(m.Block))
		b = binary.BigEndian.AppendUint32(b, uint32(m.Offset))
		b = binary.BigEndian.AppendUint32(b, uint32(m.Total))
		b = append(b, flags(m))
	case KindFail:
		b = binary.BigEndian.AppendUint32(b, uint32(m.Block))
		b = append(b, byte(m.Reason))
	case KindAck:
		b = binary.BigEndian.AppendUint64(b, m.Received)
	}
	binary.BigEndian.PutUint32(b[at+1:], uint32(len(b)-at-headerSize+len(m.Data)))
	return b
}

func flags(m Message) byte {
	if m.AckNow {
		return flagAckNow
	}
	return 0
}

// fieldSizes are the bytes of a kind's fields, and how many bytes of text or data may follow.
var fieldSizes = [maxMessages + 1]struct{ fields, rest int }{
	KindAttach: {11, maxImage}, KindAccept: {8, 0}, KindRefuse: {1, 0}, KindWant: {13, 0}, KindCancel: {4, 0},
	KindData: {dataFields, MaxUnit}, KindFail: {5, 0}, KindHave: {4, maxBitmap}, KindAck: {8, 0}, KindDetach: {0, 0}, KindBusy: {0, 0}, KindHurry: {4, 0},
}

// readMessage reads one frame. Data goes where place says; if that is nowhere, it is read and dropped.
func readMessage(r *bufio.Reader, place func(Message) []byte) (Message, error) {
	var m Message
	head, err := r.Peek(headerSize)
	if err != nil {
		return m, ended(err, len(head))
	}
	m.Kind = Kind(head[0])
	length := int64(binary.BigEndian.Uint32(head[1:]))
	if m.Kind < minMessages || m.Kind > maxMessages {
		return m, fmt.Errorf("message of kind %d: %w", m.Kind, ErrProtocol)
	}
	size := fieldSizes[m.Kind]
	if rest := length - int64(size.fields); rest < 0 || rest > int64(size.rest) {
		return m, fmt.Errorf("message of kind %d with %d bytes: %w", m.Kind, length, ErrProtocol)
	}
	_, _ = r.Discard(headerSize) // was peeked
	fields, err := r.Peek(size.fields)
	if err != nil {
		return m, ended(err, 1)
	}
	if err := m.decode(fields); err != nil {
		return m, err
	}
	_, _ = r.Discard(size.fields)
	return m, m.readRest(r, int(length)-size.fields, place)
}

// ended tells an end between messages, io.EOF, from one within.
func ended(err error, got int) error {
	if err == io.EOF && got > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (m *Message) decode(b []byte) error {
	number := func() int { return int(binary.BigEndian.Uint32(b)) }
	switch m.Kind {
	case KindAttach:
		m.Epoch, m.Count, m.Stripes = binary.BigEndian.Uint64(b), b[8], Stripes(binary.BigEndian.Uint16(b[9:]))
	case KindAccept:
		m.Epoch = binary.BigEndian.Uint64(b)
	case KindRefuse:
		m.Reason = Reason(b[0])
	case KindWant:
		m.Block, m.Lane, m.Received = number(), Lane(b[4]), binary.BigEndian.Uint64(b[5:])
		if m.Lane > LaneBackground {
			return fmt.Errorf("want in lane %d: %w", m.Lane, ErrProtocol)
		}
	case KindCancel, KindHave, KindHurry:
		m.Block = number()
	case KindData:
		m.Block, m.Offset, m.Total = number(), int(binary.BigEndian.Uint32(b[4:])), int(binary.BigEndian.Uint32(b[8:]))
		m.AckNow = b[12] == flagAckNow
		if b[12] > flagAckNow {
			return fmt.Errorf("data with flags %#x: %w", b[12], ErrProtocol)
		}
	case KindFail:
		m.Block, m.Reason = number(), Reason(b[4])
	case KindAck:
		m.Received = binary.BigEndian.Uint64(b)
	}
	return nil
}

// readRest reads what follows the fields.
func (m *Message) readRest(r *bufio.Reader, n int, place func(Message) []byte) error {
	var err error
	switch m.Kind {
	case KindAttach:
		text := make([]byte, n)
		_, err = io.ReadFull(r, text)
		m.Image = string(text)
	case KindHave:
		m.Data = make([]byte, n)
		_, err = io.ReadFull(r, m.Data)
	case KindData:
		m.Length = n
		if m.Data = place(*m); m.Data == nil {
			_, err = r.Discard(n)
		} else {
			_, err = io.ReadFull(r, m.Data)
		}
	}
	return ended(err, 1)
}

// wire is a Conn over a stream of bytes.
type wire struct {
	stream io.ReadWriteCloser
	r      *bufio.Reader // Receive
	w      []byte        // Send
	once   sync.Once
	err    error
}

// Over returns a Conn over a reliable stream of bytes, such as a libp2p stream. Closing the stream must end reads and writes
// that are under way.
func Over(stream io.ReadWriteCloser) Conn { return over(stream) }

func over(stream io.ReadWriteCloser) *wire {
	return &wire{stream: stream, r: bufio.NewReaderSize(stream, 4<<10)}
}

func (c *wire) Send(m Message) error {
	// One write for each message: every write costs a frame, a TLS record and a system call further down.
	c.w = append(encode(c.w[:0], m), m.Data...)
	_, err := c.stream.Write(c.w)
	return err
}

func (c *wire) Receive(place func(Message) []byte) (Message, error) {
	return readMessage(c.r, place)
}

func (c *wire) Close() error {
	c.once.Do(func() { c.err = c.stream.Close() })
	return c.err
}
