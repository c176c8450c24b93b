package stream_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// backup is an attachment that is only asked.
var backup = stream.Attachment{Epoch: 1}

// fed is an attachment that is pushed to.
var fed = stream.Attachment{Epoch: 1, Stripes: stream.StripesOf(0)}

func TestPeerIsSource(t *testing.T) {
	for name, at := range map[string]stream.Attachment{"backup": backup, "fed": fed} {
		t.Run(name, func(t *testing.T) {
			networks(t, func(t *testing.T, net network) {
				blocktest.Source(t, func(t *testing.T, blob *blocktest.Blob) blockfmt.Source {
					im := image(t, blob, 1)
					parent := newNode(t, stream.NodeConfig{Unit: 5000})
					share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
					child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im})
					return edge(t, net, parent, child, at)
				})
			})
		})
	}
}

// TestPush: a child gets everything unasked, in order, and what it gets it has.
func TestPush(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(5, 400<<10, 16<<10)
		im := image(t, blob, 1)
		parent := newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
		store := newArrivals()
		child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store})
		edge(t, net, parent, child, fed)
		for range im.Len() {
			<-store.came
		}
		for i := range im.Len() {
			check(t, store, blob, i)
		}
		if n := parent.Counters().BlocksUp[stream.LanePush].Load(); n != int64(im.Len()) {
			t.Errorf("%d blocks pushed, want %d", n, im.Len())
		}
	})
}

// TestPieceAfterTheEnd: who ends an edge in the middle of a block has no reason to cut off the parent that sends the rest.
func TestPieceAfterTheEnd(t *testing.T) {
	blob := blocktest.NewBlob(1, 16<<10, 16<<10)
	seen := newReports()
	s := share(t, newNode(t, stream.NodeConfig{Report: seen.add}), stream.ShareConfig{Image: image(t, blob, 1)})
	late := &lateConn{ended: make(chan struct{}), second: make(chan struct{})}
	p, sc := scriptedParent(t, func() (stream.Conn, stream.Conn) {
		up, down := stream.Pipe()
		late.Conn = down
		return up, late
	}, s, fed)
	sc.discard()
	sc.send(pieces(blob, 0, 1000)[:2]...)
	<-late.second
	p.Close()
	if list := seen.all(); len(list) != 0 || !errors.Is(p.Err(), context.Canceled) {
		t.Errorf("cut off %v, ended for %v", list, p.Err())
	}
}

// lateConn is a Conn whose second piece of data is received just when the edge has ended.
type lateConn struct {
	stream.Conn
	pieces int
	second chan struct{} // closed when it is there
	once   sync.Once
	ended  chan struct{}
}

func (c *lateConn) Receive(place func(stream.Message) []byte) (stream.Message, error) {
	m, err := c.Conn.Receive(place)
	if m.Kind == stream.KindData {
		if c.pieces++; c.pieces == 2 {
			close(c.second)
			<-c.ended
		}
	}
	return m, err
}

func (c *lateConn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}
