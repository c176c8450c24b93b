package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	mstream "github.com/multiformats/go-multistream"

	"github.com/xylem-project/xylem/blockfmt"
)

// A preface precedes the messages of a libp2p stream. Who opens the stream writes, and goes on with messages without waiting:
//
//	tokens of multistream-select | length 2 bytes | credential
//
// The other side admits the credential before it looks at anything that follows, and answers, followed by its own messages:
//
//	tokens of multistream-select | verdict 1 byte | length 2 bytes | credential, or why the opener is refused
//
// The opener admits that credential before it looks at anything that follows. So a stream costs one round trip until its
// first answer, as it would without negotiation and credentials.
const (
	maxCredential = 4 << 10 // bytes
	maxRefusal    = 256     // bytes of text

	verdictAdmitted = 0 // any other verdict is a Reason
)

// credential returns what the host shows.
func (h *Host) credential() ([]byte, error) {
	shown := h.cfg.Credential()
	if len(shown) > maxCredential {
		return nil, fmt.Errorf("own credential has %d bytes, at most %d: %w", len(shown), maxCredential, blockfmt.ErrUnsupported)
	}
	return shown, nil
}

// admits says why a peer with this credential is refused, wrapping blockfmt.ErrDenied.
func (h *Host) admits(peer PeerID, credential []byte) error {
	if err := h.cfg.Node.Allowed(peer); err != nil {
		return err
	}
	if err := h.cfg.Admit(peer, credential); err != nil {
		return fmt.Errorf("credential of %s: %w: %w", peer, err, blockfmt.ErrDenied)
	}
	return nil
}

// receivePreface takes the preface of who opened the stream, and answers it. It returns the protocol that follows.
func (h *Host) receivePreface(s network.Stream, peer PeerID) (protocol.ID, error) {
	if err := s.SetDeadline(time.Now().Add(h.cfg.Node.cfg.Handshake)); err != nil {
		return "", err
	}
	follows, _, err := h.mux.Negotiate(s)
	if err != nil {
		return "", fmt.Errorf("preface of %s: %w: %w", peer, err, blockfmt.ErrTransient)
	}
	shown, err := readSized(s, maxCredential)
	if err == nil {
		err = h.admits(peer, shown)
	}
	var own []byte
	if err == nil {
		own, err = h.credential()
	}
	answer := prefaceAnswer(own, err)
	if _, failed := s.Write(answer); err == nil {
		err = failed
	}
	return follows, errors.Join(err, s.SetDeadline(time.Time{}))
}

// prefaceAnswer is what an opener gets to hear after the tokens.
func prefaceAnswer(own []byte, refused error) []byte {
	if refused == nil {
		return appendSized([]byte{verdictAdmitted}, own)
	}
	why := refused.Error()
	return appendSized([]byte{byte(reasonOf(refused))}, []byte(why[:min(len(why), maxRefusal)]))
}

// opener is the Conn of who opened a stream.
type opener struct {
	*wire
	host    *Host
	peer    PeerID
	visit   *visit
	checked bool // the answer to the preface; Receive
}

// open sends the preface. The answer is checked by the first Receive.
func (h *Host) open(s network.Stream, peer PeerID) (Conn, error) {
	if err := h.sendPreface(s, Protocol); err != nil {
		return nil, err
	}
	return &opener{wire: over(s), host: h, peer: peer, visit: visitOf(s.Conn())}, nil
}

// sendPreface says which protocol follows, and who this is.
func (h *Host) sendPreface(s network.Stream, follows string) error {
	own, err := h.credential()
	if err != nil {
		return err
	}
	hello := appendToken(appendToken(nil, mstream.ProtocolID), follows)
	if _, err := s.Write(appendSized(hello, own)); err != nil {
		return fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	return nil
}

func (c *opener) Receive(place func(Message) []byte) (Message, error) {
	if !c.checked {
		if err := c.host.checkAnswer(c.r, Protocol, c.peer); err != nil {
			return Message{}, err
		}
		c.visit.admit() // that it is the other side's connection does not make it a stranger's
		c.checked = true
	}
	return c.wire.Receive(place)
}

// checkAnswer reads a peer's answer to the preface.
func (h *Host) checkAnswer(r *bufio.Reader, follows string, peer PeerID) error {
	if err := selected(r, follows); err != nil {
		return err
	}
	verdict, err := r.ReadByte()
	if err != nil {
		return ended(err, 1)
	}
	if verdict != verdictAdmitted {
		why, err := readSized(r, maxRefusal)
		if err != nil {
			return err
		}
		return fmt.Errorf("refused, %q: %w", why, Reason(verdict).err())
	}
	shown, err := readSized(r, maxCredential)
	if err != nil {
		return err
	}
	return h.admits(peer, shown)
}

// selected reads the answer of multistream-select.
func selected(r *bufio.Reader, follows string) error {
	for i, want := range []string{mstream.ProtocolID, follows} {
		switch token, err := mstream.ReadNextToken[protocol.ID](r); {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			return ended(err, i)
		case err != nil:
			return fmt.Errorf("answer to %s: %w: %w", want, err, blockfmt.ErrTransient)
		case token == "na":
			return fmt.Errorf("%s: %w", follows, blockfmt.ErrUnsupported)
		case string(token) != want:
			return fmt.Errorf("answer to %s is %q: %w", want, token, ErrProtocol)
		}
	}
	return nil
}

// appendToken appends a token of multistream-select.
func appendToken(b []byte, token string) []byte {
	b = binary.AppendUvarint(b, uint64(len(token)+1))
	return append(append(b, token...), '\n')
}

func appendSized(b, data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// readSized reads what appendSized wrote, at most so many bytes.
func readSized(r io.Reader, most int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, ended(err, 1)
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > most {
		return nil, fmt.Errorf("%d bytes in a preface, at most %d: %w", n, most, ErrProtocol)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return data, ended(err, 1)
}
