package treesim

import (
	"github.com/xylem-project/xylem/tree"
	"github.com/xylem-project/xylem/tree/stream"
)

func id(p stream.PeerID) tree.ID { return tree.ID(p) }

// lie is a way in which an agent breaks the protocol.
type lie struct {
	world *world
	kind  Kind
	every uint64 // which of its messages
}

// disguise makes an edge of a liar.
func (a *agent) disguise(c stream.Conn) stream.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lie == nil {
		return c
	}
	return &liar{Conn: c, lie: a.lie}
}

// liar is a Conn that changes what is sent.
type liar struct {
	stream.Conn
	lie   *lie
	sent  uint64
	epoch uint64 // of the honest attachment
}

func (l *liar) Send(m stream.Message) error {
	l.sent++
	switch {
	case l.lie.kind == LieEpoch && m.Kind == stream.KindAttach:
		l.epoch = m.Epoch
		m.Epoch = 1 // of a tree that nobody knows any more
	case m.Kind != stream.KindData || scatter(l.sent, l.lie.every)%3 != 0:
	case l.lie.kind == LieBytes:
		m.Data = make([]byte, m.Length)
	case l.lie.kind == LieIndex:
		m.Block = l.lie.world.content.image.Len() + int(l.sent)
	case l.lie.kind == LieUnasked:
		other := (m.Block + 1) % l.lie.world.content.image.Len() // of another stripe, if there are two
		data := l.lie.world.content.of(l.lie.world.content.image.Ref(other))
		if err := l.Conn.Send(stream.Message{Kind: stream.KindData, Block: other, Length: len(data), Total: len(data), Data: data}); err != nil {
			return err
		}
	}
	return l.Conn.Send(m)
}

func (l *liar) Receive(place func(stream.Message) []byte) (stream.Message, error) {
	m, err := l.Conn.Receive(place)
	if err == nil && l.epoch != 0 && m.Kind == stream.KindAccept {
		m.Epoch = l.epoch
	}
	return m, err
}
