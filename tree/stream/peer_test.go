package stream_test

import (
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
