package stream_test

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// TestBanEnds: who was cut off may come back after a while, and is reported again if it did not learn.
func TestBanEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		parent := newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Store: liar{blob}, Source: liar{blob}})
		seen := newReports()
		node := newNode(t, stream.NodeConfig{Report: seen.add, Ban: time.Hour})
		child := share(t, node, stream.ShareConfig{Image: im})
		for n := range 3 {
			p := edge(t, net, parent, child, backup)
			_, err := p.Block(context.Background(), im.Ref(0))
			wantErr(t, "read", err, blockfmt.ErrCorrupt)
			time.Sleep(59 * time.Minute)
			_, err = net.attach(t.Context(), parent, child, backup)
			wantErr(t, "attach while banned", err, blockfmt.ErrDenied)
			time.Sleep(2 * time.Minute)
			if got := len(seen.all()); got != n+1 || node.Counters().CutOffs.Load() != int64(n+1) {
				t.Errorf("reported %d times, want %d", got, n+1)
			}
		}
	})
}

// TestShareCloses: the end of a share ends its edges in both directions, and waits for them; the others go on.
func TestShareCloses(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob, other := blocktest.NewBlob(1, 64<<10, 16<<10), blocktest.NewBlob(2, 64<<10, 16<<10)
		im := image(t, blob, 1)
		root, middle, leaf := newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{})
		source := share(t, root, stream.ShareConfig{Image: im, Source: blob})
		relay := share(t, middle, stream.ShareConfig{Image: im, Source: blob})
		end := share(t, leaf, stream.ShareConfig{Image: im})
		share(t, middle, stream.ShareConfig{Image: image(t, other, 1), Source: other})
		up := edge(t, net, root, relay, fed)
		down := edge(t, net, middle, end, fed)
		still := edge(t, net, middle, share(t, leaf, stream.ShareConfig{Image: image(t, other, 1)}), fed)
		if err := relay.Close(); err != nil {
			t.Error(err)
		}
		if len(relay.Children()) > 0 {
			t.Error("a closed share has children")
		}
		<-up.Done()
		<-down.Done()
		for len(source.Children()) > 0 {
			runtime.Gosched() // the root's end ends a moment later
		}
		check(t, still, other, 1)
		_, err := net.attach(t.Context(), middle, end, fed)
		wantErr(t, "attach to a share that is closed", err, blockfmt.ErrNotFound)
		_, err = net.attach(t.Context(), root, relay, fed)
		wantErr(t, "attach by a share that is closed", err, blockfmt.ErrTransient)
		again := share(t, middle, stream.ShareConfig{Image: im, Source: blob})
		edge(t, net, root, again, fed)
	})
}

// TestWaitingIsNotDeath: a parent that waits for its own parent says so: it is not put back, and few of its children's reads
// are hedged.
func TestWaitingIsNotDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 1<<20, 4<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		parent, other := newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{})
		slow := newCandidate(blob, 5*time.Second)
		share(t, parent, stream.ShareConfig{Image: im, Source: slow})
		share(t, other, stream.ShareConfig{Image: im, Source: newCandidate(blob, forever)})
		child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im})
		var counters stream.Counters
		l := newLadder(t, stream.LadderConfig{Counters: &counters},
			rung("parent", edge(t, net, parent, child, fed)), rung("backup", edge(t, net, other, child, backup)))
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { check(t, l, blob, i) })
		}
		wg.Wait()
		if h, s := counters.Hedges.Load(), counters.Stalls.Load(); h == 0 || h > 9 || s > 0 {
			t.Errorf("%d hedges, %d candidates put back; want a few, and none", h, s)
		}
		l.Close() // before its sources
	})
}

// TestGrandparent: when a parent dies, its child reads on from the grandparent, each block once more at most.
func TestGrandparent(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 512<<10, 8<<10)
		im := image(t, blob, 1)
		grand, parent, leaf := newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{})
		origin := &blocktest.Counting{Next: blob}
		share(t, grand, stream.ShareConfig{Image: im, Source: origin})
		var stack blockfmt.Source
		middle := share(t, parent, stream.ShareConfig{Image: im, Source: blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
			return stack.Block(ctx, ref)
		})})
		stack = edge(t, net, grand, middle, backup)
		child := share(t, leaf, stream.ShareConfig{Image: im})
		l := newLadder(t, stream.LadderConfig{}, rung("parent", edge(t, net, parent, child, backup)), rung("grandparent", edge(t, net, grand, child, backup)))
		var wg sync.WaitGroup
		half := make(chan struct{})
		for reader := range 4 {
			wg.Go(func() {
				for i := reader; i < im.Len(); i += 4 {
					check(t, l, blob, i)
					if i == im.Len()/2 {
						close(half)
					}
				}
			})
		}
		<-half
		net.kill(parent)
		wg.Wait()
		if n := origin.Total(); n < im.Len() || n > im.Len()+4 {
			t.Errorf("%d blocks were read at the top, want %d and those that were on their way", n, im.Len())
		}
	})
}

// TestEvictedBlock: a block that the store has lost is not pushed, and is again when it came back.
func TestEvictedBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		lossy := &lossy{Memory: full(t, blob), lost: 1}
		parent := newNode(t, stream.NodeConfig{})
		s := share(t, parent, stream.ShareConfig{Image: im, Store: lossy})
		store := newArrivals()
		edge(t, newPipes(t), parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store}), fed)
		synctest.Wait()
		if n := len(store.came); n != im.Len()-1 || s.Have() != im.Len()-1 {
			t.Errorf("%d blocks came, %d are offered, want all but one of %d", n, s.Have(), im.Len())
		}
		s.Arrived(im.Ref(1), blob.Bytes(im.Ref(1)))
		synctest.Wait()
		if n := len(store.came); n != im.Len() || s.Have() != im.Len() {
			t.Errorf("%d blocks came, %d are offered, want %d", n, s.Have(), im.Len())
		}
	})
}

// lossy is a Store that does not find a block which it says it has.
type lossy struct {
	*blocktest.Memory
	lost int
}

func (l *lossy) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if ref.Number == l.lost {
		return nil, blockfmt.ErrNotFound
	}
	return l.Memory.Block(ctx, ref)
}
