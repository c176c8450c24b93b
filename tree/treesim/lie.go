package treesim

import (
	"sync/atomic"

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

// disguise makes an edge of an agent that may become a liar.
func (a *agent) disguise(c stream.Conn) stream.Conn {
	if !a.world.lies {
		return c
	}
	return &liar{Conn: c, agent: a}
}

// liar is a Conn that changes what is sent once its agent is a liar.
type liar struct {
	stream.Conn
	agent *agent
	sent  uint64
	epoch atomic.Uint64 // of the honest attachment
}

func (l *liar) Send(m stream.Message) error {
	l.sent++
	lie := l.agent.lie.Load()
	switch {
	case lie == nil:
	case lie.kind == LieEpoch && m.Kind == stream.KindAttach:
		l.epoch.Store(m.Epoch)
		m.Epoch = 1 // of a tree that nobody knows any more
	case m.Kind != stream.KindData || scatter(l.sent, lie.every)%3 != 0:
	case lie.kind == LieBytes:
		m.Data = make([]byte, m.Length)
	case lie.kind == LieIndex:
		m.Block = lie.world.content.image.Len() + int(l.sent)
	case lie.kind == LieUnasked:
		other := (m.Block + 1) % lie.world.content.image.Len() // of another stripe, if there are two
		data := lie.world.content.of(lie.world.content.image.Ref(other))
		if err := l.Conn.Send(stream.Message{Kind: stream.KindData, Block: other, Length: len(data), Total: len(data), Data: data}); err != nil {
			return err
		}
	}
	return l.Conn.Send(m)
}

func (l *liar) Receive(place func(stream.Message) []byte) (stream.Message, error) {
	m, err := l.Conn.Receive(place)
	if epoch := l.epoch.Load(); err == nil && epoch != 0 && m.Kind == stream.KindAccept {
		m.Epoch = epoch
	}
	return m, err
}
