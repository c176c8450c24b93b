package stream_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// TestRelay: blocks run down a chain while they come in, from memory, each is sent once over each hop, and each node ends with
// all of them.
func TestRelay(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 1<<20, 16<<10)
		im := image(t, blob, 1)
		root := newNode(t, stream.NodeConfig{})
		source := share(t, root, stream.ShareConfig{Image: im})
		nodes, last := []*stream.Node{root}, newArrivals()
		for hop := range 4 {
			var store blockfmt.Store = new(blocktest.Memory)
			if hop == 3 {
				store = last
			}
			n := newNode(t, stream.NodeConfig{})
			edge(t, net, nodes[hop], share(t, n, stream.ShareConfig{Image: im, Store: store}), fed)
			nodes = append(nodes, n)
		}
		for i, ref := range blob.Refs() { // as from the registry
			source.Arrived(ref, blob.Bytes(ref))
			source.Arrived(ref, blob.Bytes(ref))
			if got := <-last.came; got != i {
				t.Errorf("block %d came after block %d", got, i)
			}
		}
		for i := range im.Len() {
			check(t, last, blob, i)
		}
		for i, n := range nodes[:4] {
			c := n.Counters()
			if up := c.BytesUp[stream.LanePush].Load(); up != blob.Index.StoredSize() || c.Hot.Load() != int64(im.Len()) {
				t.Errorf("node %d sent %d of %d bytes, %d of %d blocks from memory", i, up, blob.Index.StoredSize(), c.Hot.Load(), im.Len())
			}
		}
	})
}

// TestRecycledBuffers: buffers are used again only when nobody sends from them any more, whatever children want, cancel or get
// from elsewhere meanwhile. Bytes that changed on their way would get the relay cut off.
func TestRecycledBuffers(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 1<<20, 16<<10)
		im := image(t, blob, 1)
		root := newNode(t, stream.NodeConfig{})
		share(t, root, stream.ShareConfig{Image: im, Store: full(t, blob)})
		middle := newNode(t, stream.NodeConfig{Hot: 64 << 10, Unit: 700})
		relay := share(t, middle, stream.ShareConfig{Image: im, Store: new(blocktest.Memory)})
		seen := newReports()
		var wg sync.WaitGroup
		for range 3 {
			store := newArrivals()
			s := share(t, newNode(t, stream.NodeConfig{Report: seen.add}), stream.ShareConfig{Image: im, Store: store})
			p := edge(t, net, middle, s, fed)
			wg.Go(func() {
				for i := range im.Len() {
					ctx, cancel := context.WithCancel(context.Background())
					go cancel()
					_, _ = p.Block(ctx, im.Ref((7*i)%im.Len()))
					if i%5 == 0 {
						s.Arrived(im.Ref(i), blob.Bytes(im.Ref(i)))
						_ = store.Put(ctx, im.Ref(i), blob.Bytes(im.Ref(i)))
					}
				}
				for s.Have() < im.Len() {
					<-store.came
				}
			})
		}
		edge(t, net, root, relay, fed)
		wg.Wait()
		if list := seen.all(); len(list) > 0 {
			t.Errorf("cut off: %v", list)
		}
	})
}

// TestStripes: a child is pushed what travels in its stripes, from each parent one half, and reads each block from the parent of
// its stripe.
func TestStripes(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 400<<10, 16<<10)
		im := image(t, blob, 2)
		store := newArrivals()
		child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store})
		var peers []blockfmt.Source
		var parents []*stream.Node
		for stripe := range 2 {
			n := newNode(t, stream.NodeConfig{})
			share(t, n, stream.ShareConfig{Image: im, Store: full(t, blob)})
			peers = append(peers, edge(t, net, n, child, stream.Attachment{Epoch: 1, Stripes: stream.StripesOf(stripe)}))
			parents = append(parents, n)
		}
		for range im.Len() {
			<-store.came
		}
		for stripe, n := range parents {
			want := int64(0)
			for i := stripe; i < im.Len(); i += 2 {
				want += im.Ref(i).Length
			}
			if got := n.Counters().BytesUp[stream.LanePush].Load(); got != want {
				t.Errorf("stripe %d: %d bytes, want %d", stripe, got, want)
			}
		}
		src, err := stream.Striped(im, peers...)
		if err != nil {
			t.Fatal(err)
		}
		for i := range im.Len() {
			check(t, src, blob, i)
		}
		for stripe, n := range parents {
			if got, want := n.Counters().BlocksUp[stream.LaneDemand].Load(), int64((im.Len()+1-stripe)/2); got != want {
				t.Errorf("stripe %d: %d blocks read, want %d", stripe, got, want)
			}
		}
		if _, err := stream.Striped(im, peers[0]); err == nil {
			t.Error("one source was taken for two stripes")
		}
	})
}

func TestStripedIsSource(t *testing.T) {
	blocktest.Source(t, func(t *testing.T, blob *blocktest.Blob) blockfmt.Source {
		src, err := stream.Striped(image(t, blob, 3), blob, blob, blob)
		if err != nil {
			t.Fatal(err)
		}
		if blockfmt.IsVerified(src) {
			t.Error("claims to be verified")
		}
		return src
	})
}

// TestWhatIsHereIsNotPushed: a child that has blocks already gets the others only.
func TestWhatIsHereIsNotPushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 400<<10, 16<<10)
		im := image(t, blob, 1)
		store := newArrivals()
		for i := 0; i < im.Len(); i += 2 {
			if err := store.Memory.Put(t.Context(), im.Ref(i), blob.Bytes(im.Ref(i))); err != nil {
				t.Fatal(err)
			}
		}
		node := newNode(t, stream.NodeConfig{})
		child := share(t, node, stream.ShareConfig{Image: im, Store: store})
		parent := newNode(t, stream.NodeConfig{})
		source := share(t, parent, stream.ShareConfig{Image: im})
		edge(t, newPipes(t), parent, child, fed)
		synctest.Wait() // until the parent knows
		for _, ref := range blob.Refs() {
			source.Arrived(ref, blob.Bytes(ref))
		}
		synctest.Wait()
		if up, missing := parent.Counters().BlocksUp[stream.LanePush].Load(), int64(im.Len()/2); up != missing || node.Counters().Duplicates.Load() != 0 {
			t.Errorf("%d blocks were pushed, want %d", up, missing)
		}
	})
}

// TestArrivalEndsThePush: a block that comes from elsewhere is not pushed to the end.
func TestArrivalEndsThePush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 512<<10, 512<<10)
		im := image(t, blob, 1)
		parent := newNode(t, stream.NodeConfig{Up: 100_000, Unit: 1000})
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
		store := newArrivals()
		child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store})
		p := edge(t, newPipes(t), parent, child, fed)
		time.Sleep(time.Second)
		child.Arrived(im.Ref(0), blob.Bytes(im.Ref(0)))
		time.Sleep(time.Minute)
		if up := parent.Counters().BytesUp[stream.LanePush].Load(); up < 90_000 || up > 110_000 {
			t.Errorf("%d bytes were pushed, want those of one second, 100000", up)
		}
		check(t, p, blob, 0) // and the edge is as good as before
	})
}

// TestSiblingsMisses: what one child demands, its sibling gets next.
func TestSiblingsMisses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 2<<20, 16<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		parent := newNode(t, stream.NodeConfig{Up: 1_000_000})
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob), Source: blob})
		store := newArrivals()
		edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store}), fed)
		other := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
		for range 5 {
			<-store.came
		}
		check(t, other, blob, 100)
		var order []int
		for range 5 {
			order = append(order, <-store.came)
		}
		if at := indexOf(order, 100); at < 0 || at > 3 {
			t.Errorf("after a sibling's miss of block 100 came %v", order)
		}
	})
}

func indexOf(list []int, want int) int {
	for at, i := range list {
		if i == want {
			return at
		}
	}
	return -1
}

// TestSlowChild: a child that takes nothing, or little, costs its parent a bounded number of bytes, and its sibling nothing.
func TestSlowChild(t *testing.T) {
	for name, slow := range map[string]int64{"stuck": 1, "slow": 50_000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				blob := blocktest.NewBlob(1, 4<<20, 64<<10)
				im := image(t, blob, 1)
				net := newPipes(t)
				parent := newNode(t, stream.NodeConfig{MaxWindow: 256 << 10, Hot: 1})
				reads := &blocktest.Counting{Next: full(t, blob)}
				share(t, parent, stream.ShareConfig{Image: im, Store: counted{full(t, blob), reads}})
				p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{Down: slow}), stream.ShareConfig{Image: im}), fed)
				store := newArrivals()
				start := time.Now()
				edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{Down: 10_000_000}), stream.ShareConfig{Image: im, Store: store}), fed)
				for range im.Len() {
					<-store.came
				}
				if took, want := time.Since(start), time.Duration(blob.Index.StoredSize())*time.Second/10_000_000; took > want*11/10 {
					t.Errorf("the sibling took %v, alone it takes %v", took, want)
				}
				synctest.Wait()
				taken := time.Since(start).Seconds() * float64(slow)
				extra := parent.Counters().BytesUp[stream.LanePush].Load() - blob.Index.StoredSize() - int64(taken)
				if limit := int64(256<<10 + 2*64<<10); extra > limit {
					t.Errorf("%d bytes are on the way to the slow child, want at most %d", extra, limit)
				}
				if n, limit := reads.Total(), im.Len()+int(taken)/(30<<10)+256/30+5; n > limit {
					t.Errorf("%d blocks were read for a sibling of %d and the slow one, want at most %d", n, im.Len(), limit)
				}
				p.Close()
			})
		})
	}
}

// TestUplink: what a node feeds tells its uplink as long as its children wait for more, and nothing otherwise. What it carried at best
// is remembered for longer.
func TestUplink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 8<<20, 64<<10)
		im := image(t, blob, 1)
		news := 0
		parent, store := newNode(t, stream.NodeConfig{MaxWindow: 256 << 10, Measured: func() { news++ }}), newArrivals()
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
		expect := func(when string, low, high int64, waiting int) {
			t.Helper()
			rate, who := parent.Uplink()
			if rate < low || rate > high || len(who) != waiting {
				t.Errorf("%s: %d bytes/s while %v waited, want %d to %d, %d", when, rate, who, low, high, waiting)
			}
		}
		expect("without children", 0, 0, 0)
		child := newNode(t, stream.NodeConfig{Down: 1_000_000})
		edge(t, newPipes(t), parent, share(t, child, stream.ShareConfig{Image: im, Store: store}), fed)
		for range im.Len() * 7 / 8 {
			<-store.came
		}
		expect("the child takes 1,000,000", 900_000, 1_100_000, 1)
		for range im.Len() - im.Len()*7/8 {
			<-store.came
		}
		if sent, _ := parent.Carried(); sent < 900_000 || sent > 1_100_000 {
			t.Errorf("%d bytes/s were sent", sent)
		}
		if _, received := child.Carried(); received < 900_000 || received > 1_100_000 {
			t.Errorf("%d bytes/s were received", received)
		}
		if news == 0 || news > 4 {
			t.Errorf("told %d times of news", news)
		}
		time.Sleep(30 * time.Second)
		expect("long after the last block", 0, 0, 0)
		if sent, _ := parent.Carried(); sent == 0 {
			t.Error("forgot what was sent")
		}
		time.Sleep(time.Minute)
		if sent, received := parent.Carried(); sent != 0 || received != 0 {
			t.Errorf("%d and %d bytes/s longer ago than a minute", sent, received)
		}
	})
}

// TestUplinkOfRelay: who passes on at once what comes slowly is not slow.
func TestUplinkOfRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 8<<20, 64<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		root, middle, store := newNode(t, stream.NodeConfig{Up: 500_000, MaxWindow: 256 << 10}), newNode(t, stream.NodeConfig{Up: 100_000_000}), newArrivals()
		share(t, root, stream.ShareConfig{Image: im, Store: full(t, blob)})
		relay := share(t, middle, stream.ShareConfig{Image: im, Store: newArrivals()})
		edge(t, net, root, relay, fed)
		edge(t, net, middle, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store}), fed)
		for range im.Len() / 2 {
			<-store.came
		}
		if rate, _ := root.Uplink(); rate < 400_000 || rate > 600_000 {
			t.Errorf("%d bytes/s from who has 500,000", rate)
		}
		if rate, waiting := middle.Uplink(); rate != 0 {
			t.Errorf("%d bytes/s while %v waited for who waits itself", rate, waiting)
		}
		if sent, _ := middle.Carried(); sent < 400_000 || sent > 600_000 {
			t.Errorf("%d bytes/s were passed on of 500,000", sent)
		}
	})
}

// counted is a Store whose reads are counted.
type counted struct {
	blockfmt.Store
	reads *blocktest.Counting
}

func (c counted) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	return c.reads.Block(ctx, ref)
}

// TestWindowShrinksInMidBlock: a window that becomes smaller than what is on its way does not end the push.
func TestWindowShrinksInMidBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small, large := blocktest.NewBlob(1, 2<<10, 1<<10), blocktest.NewBlob(2, 512<<10, 512<<10)
		im, err := stream.NewImage(small.Index.Blob(), 1, small.Index, large.Index)
		if err != nil {
			t.Fatal(err)
		}
		store := full(t, small)
		if err := store.Put(t.Context(), im.Ref(2), large.Bytes(im.Ref(2))); err != nil {
			t.Fatal(err)
		}
		parent := newNode(t, stream.NodeConfig{Up: 100_000, Unit: 1000, MinWindow: 8 << 10, MaxWindow: 2 << 20})
		share(t, parent, stream.ShareConfig{Image: im, Store: store})
		sc, _ := scriptedChild(t, stream.Pipe, parent, "child")
		sc.send(attach(im, fed))
		start := time.Now()
		for received, total := uint64(0), uint64(small.Index.StoredSize()+large.Index.StoredSize()); received < total; {
			m, err := sc.Receive(whole)
			if err != nil {
				t.Fatalf("after %d of %d bytes: %v", received, total, err)
			}
			received += uint64(m.Length)
			var late time.Duration // none for block 0, after which the window is as large as may be
			if m.Block == 1 {
				late = time.Second // now it is as small as may be, in the middle of the large block
			}
			if m.AckNow || m.Kind == stream.KindBusy {
				r := received
				sc.wg.Go(func() {
					time.Sleep(late)
					sc.send(stream.Message{Kind: stream.KindAck, Received: r})
				})
			}
		}
		between(t, "all blocks", time.Since(start), 2*time.Second, 5*time.Second)
	})
}

// TestWantWhilePushReads: a block that is wanted and sent while the push still reads it from the store is not sent again.
func TestWantWhilePushReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 16<<10, 16<<10)
		im := image(t, blob, 1)
		g := newGate(blob)
		parent := newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Source: blob, Store: gated{full(t, blob), g}})
		node := newNode(t, stream.NodeConfig{})
		p := edge(t, newPipes(t), parent, share(t, node, stream.ShareConfig{Image: im, Store: forgetful{}}), fed)
		<-g.entered
		check(t, p, blob, 0)
		close(g.open)
		synctest.Wait()
		c := parent.Counters()
		if d, u := c.BlocksUp[stream.LaneDemand].Load(), c.BlocksUp[stream.LanePush].Load(); d != 1 || u != 0 {
			t.Errorf("block was sent %d times because it was wanted, and pushed %d times", d, u)
		}
		check(t, p, blob, 0) // what the child has lost is sent again when it is wanted again
	})
}

// gated is a Store whose reads wait at a gate.
type gated struct {
	blockfmt.Store
	gate *gate
}

func (g gated) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	return g.gate.Block(ctx, ref)
}

// TestFloodIsBounded: a child that wants all that it may has a bounded number of bytes in its parent's memory, and the
// others are served meanwhile.
func TestFloodIsBounded(t *testing.T) {
	blob := blocktest.NewBlob(1, 10<<20, 64<<10)
	im := image(t, blob, 1)
	g := newGate(blob)
	parent := newNode(t, stream.NodeConfig{Staged: 1 << 20})
	share(t, parent, stream.ShareConfig{Image: im, Source: blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
		if ref.Number < stream.MaxWants {
			return g.Block(ctx, ref)
		}
		return blob.Block(ctx, ref)
	})})
	sc, _ := scriptedChild(t, stream.Pipe, parent, "greedy")
	sc.send(attach(im, backup))
	sc.expect(stream.KindAccept)
	for i := range stream.MaxWants {
		sc.send(stream.Message{Kind: stream.KindWant, Block: i})
	}
	p := edge(t, newPipes(t), parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
	for i := stream.MaxWants; i < im.Len(); i++ {
		check(t, p, blob, i)
	}
	if n, size := len(g.entered), int(im.Ref(0).Length); n*size > 1<<20 {
		t.Errorf("%d blocks of %d bytes are read at a time", n, size)
	}
	close(g.open)
	received := uint64(0)
	for range stream.MaxWants {
		m := sc.expect(stream.KindData)
		if m.Length == 0 || m.Length < m.Total {
			t.Fatalf("block %d in pieces", m.Block)
		}
		if received += uint64(m.Length); m.AckNow {
			sc.send(stream.Message{Kind: stream.KindAck, Received: received})
		}
	}
}

// TestCaps: bytes keep to the caps of either side.
func TestCaps(t *testing.T) {
	for name, caps := range map[string][2]stream.NodeConfig{
		"up":   {{Up: 500_000}, {}},
		"down": {{}, {Down: 500_000}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				blob := blocktest.NewBlob(1, 2<<20, 64<<10)
				im := image(t, blob, 1)
				parent := newNode(t, caps[0])
				share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
				store := newArrivals()
				start := time.Now()
				p := edge(t, newPipes(t), parent, share(t, newNode(t, caps[1]), stream.ShareConfig{Image: im, Store: store}), fed)
				for range im.Len() {
					<-store.came
				}
				took, want := time.Since(start), time.Duration(blob.Index.StoredSize())*time.Second/500_000
				if took < want*9/10 || took > want*11/10 {
					t.Errorf("%d bytes took %v at 500000 a second, want %v", blob.Index.StoredSize(), took, want)
				}
				p.Close()
			})
		})
	}
}

// TestNewEpoch: a newer attachment supersedes the older one, which finishes what is under way and ends.
func TestNewEpoch(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		g := newGate(blob)
		parent := newNode(t, stream.NodeConfig{})
		s := share(t, parent, stream.ShareConfig{Image: im, Source: g})
		child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im})
		old := edge(t, net, parent, child, stream.Attachment{Epoch: 1, Stripes: stream.StripesOf(0)})
		var wg sync.WaitGroup
		wg.Go(func() { check(t, old, blob, 1) })
		<-g.entered
		edge(t, net, parent, child, stream.Attachment{Epoch: 2, Stripes: stream.StripesOf(0)})
		_, err := net.attach(t.Context(), parent, child, stream.Attachment{Epoch: 1, Stripes: stream.StripesOf(0)})
		wantErr(t, "older epoch", err, stream.ErrStale)
		close(g.open)
		wg.Wait()
		<-old.Done()
		_, err = old.Block(t.Context(), im.Ref(2))
		wantErr(t, "read on the old edge", err, blockfmt.ErrTransient)
		again := edge(t, net, parent, child, stream.Attachment{Epoch: 2, Stripes: stream.StripesOf(0)}) // after a broken connection
		s.Expect(net.name(child.Node()), stream.StripesOf(0), 3)
		<-again.Done()
	})
}

// TestDrainTakesTooLong: a replaced edge whose child does not leave is ended.
func TestDrainTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		parent := newNode(t, stream.NodeConfig{Drain: 3 * time.Second})
		s := share(t, parent, stream.ShareConfig{Image: im})
		sc, served := scriptedChild(t, stream.Pipe, parent, "child")
		sc.send(attach(im, fed))
		sc.expect(stream.KindAccept)
		start := time.Now()
		s.Expect("child", fed.Stripes, 2)
		sc.expect(stream.KindDetach)
		sc.send(stream.Message{Kind: stream.KindWant, Block: 1})
		if m := sc.expect(stream.KindFail); m.Reason != stream.ReasonTransient {
			t.Errorf("a want on a replaced edge failed for reason %d", m.Reason)
		}
		sc.discard()
		wantErr(t, "served", <-served, stream.ErrStale)
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("after %v", d)
		}
	})
}

// TestDrain: a child that leaves gets what is under way, and nothing new.
func TestDrain(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		g := newGate(blob)
		parent := newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Source: g})
		p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
		var wg sync.WaitGroup
		wg.Go(func() { check(t, p, blob, 1) })
		<-g.entered
		wg.Go(func() {
			if err := p.Drain(context.Background()); err != nil {
				t.Error(err)
			}
		})
		close(g.open)
		wg.Wait()
		_, err := p.Block(t.Context(), im.Ref(0))
		wantErr(t, "read after leaving", err, blockfmt.ErrTransient)
	})
}

// TestHaves: a backup tells what it has, at first and later.
func TestHaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 2<<20, 16<<10)
		im := image(t, blob, 1)
		parent := newNode(t, stream.NodeConfig{})
		s := share(t, parent, stream.ShareConfig{Image: im})
		s.Arrived(im.Ref(3), blob.Bytes(im.Ref(3)))
		p := edge(t, newPipes(t), parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
		s.Arrived(im.Ref(100), blob.Bytes(im.Ref(100)))
		synctest.Wait()
		for _, i := range []int{3, 4, 99, 100} {
			if got, want := p.Has(im.Ref(i)), i == 3 || i == 100; got != want {
				t.Errorf("has block %d: %v, want %v", i, got, want)
			}
		}
		if p.Has(blocktest.NewBlob(2, 1<<10, 1<<10).Index.Ref(0)) {
			t.Error("has a block of another image")
		}
	})
}

// heard counts the messages of a kind that a Conn receives.
type heard struct {
	stream.Conn
	kind stream.Kind
	n    atomic.Int64
}

func (c *heard) Receive(place func(stream.Message) []byte) (stream.Message, error) {
	m, err := c.Conn.Receive(place)
	if err == nil && m.Kind == c.kind {
		c.n.Add(1)
	}
	return m, err
}

// TestNewsComeInBatches: a backup tells of what comes a few times a second however much comes, and of everything in the end; at
// once, if it is asked.
func TestNewsComeInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 1<<20, 4<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		haves := &heard{kind: stream.KindHave}
		net.wrap = func(parent, child stream.Conn) (stream.Conn, stream.Conn) {
			haves.Conn = child
			return parent, haves
		}
		parent := newNode(t, stream.NodeConfig{})
		s := share(t, parent, stream.ShareConfig{Image: im, Source: blob})
		p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
		for i := range im.Len() - 1 { // 255 blocks in 510 ms
			s.Arrived(im.Ref(i), blob.Bytes(im.Ref(i)))
			time.Sleep(2 * time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if n := haves.n.Load(); n < 5 || n > 13 {
			t.Errorf("%d messages tell of %d blocks in 0.5 s, want one in 50 ms", n, im.Len())
		}
		for i := range im.Len() - 1 {
			if !p.Has(im.Ref(i)) {
				t.Fatalf("block %d came, and the child does not know", i)
			}
		}
		time.Sleep(10 * time.Millisecond)
		before := haves.n.Load()
		s.Arrived(im.Ref(im.Len()-1), blob.Bytes(im.Ref(im.Len()-1)))
		check(t, p, blob, 0)
		synctest.Wait()
		if haves.n.Load() != before+1 || !p.Has(im.Ref(im.Len()-1)) {
			t.Error("a child that asks does not hear at once what came")
		}
	})
}

// TestAttachWhileTheStoreKeeps: a child that attaches while the store is still keeping a block gets it, although it cannot be
// read back when the push looks for it.
func TestAttachWhileTheStoreKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 16<<10, 16<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		root, middle := newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{})
		share(t, root, stream.ShareConfig{Image: im, Store: full(t, blob)})
		slow := &slowKeeper{open: make(chan struct{})}
		edge(t, net, root, share(t, middle, stream.ShareConfig{Image: im, Store: slow}), fed)
		synctest.Wait()
		store := newArrivals()
		edge(t, net, middle, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store}), fed)
		synctest.Wait()
		close(slow.open)
		if i := <-store.came; i != 0 {
			t.Errorf("block %d came", i)
		}
	})
}

// slowKeeper is a Store that keeps nothing before it is open.
type slowKeeper struct {
	blocktest.Memory
	open chan struct{}
}

func (s *slowKeeper) Put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	<-s.open
	return s.Memory.Put(ctx, ref, stored)
}

// TestWantWhileThePushDrains: a block that is in the middle of being pushed when the edge is replaced, and is wanted then, comes
// as a whole.
func TestWantWhileThePushDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 16<<10, 16<<10)
		im := image(t, blob, 1)
		parent := newNode(t, stream.NodeConfig{Unit: 1000})
		s := share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
		sc, _ := scriptedChild(t, stream.Pipe, parent, "child")
		sc.send(attach(im, fed))
		m := sc.expect(stream.KindData)
		synctest.Wait() // the second piece is being sent
		s.Expect("child", fed.Stripes, fed.Epoch+1)
		sc.send(stream.Message{Kind: stream.KindWant, Received: uint64(m.Length)})
		synctest.Wait()
		for got := m.Length; got < m.Total; {
			switch next, err := sc.Receive(whole); {
			case err != nil:
				t.Fatal(err)
			case next.Kind == stream.KindFail:
				t.Fatalf("failed after %d of %d bytes", got, m.Total)
			case next.Kind == stream.KindData:
				if next.Offset != got {
					t.Fatalf("bytes at %d, want them at %d", next.Offset, got)
				}
				got += next.Length
			}
		}
		sc.discard()
	})
}
