package stream_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// gate is a Source whose reads wait until it opens.
type gate struct {
	blockfmt.Source
	entered chan struct{} // one for each read
	left    chan error    // one for each read that gave up
	open    chan struct{}
}

func newGate(src blockfmt.Source) *gate {
	return &gate{src, make(chan struct{}, 1000), make(chan error, 1000), make(chan struct{})}
}

func (g *gate) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	g.entered <- struct{}{}
	select {
	case <-g.open:
		return g.Source.Block(ctx, ref)
	case <-ctx.Done():
		g.left <- ctx.Err()
		return nil, ctx.Err()
	}
}

// watched is a context that tells when somebody begins to wait for its end.
type watched struct {
	context.Context
	once  sync.Once
	waits chan<- struct{}
}

func (w *watched) Done() <-chan struct{} {
	w.once.Do(func() { w.waits <- struct{}{} })
	return w.Context.Done()
}

// TestOneRequestForMany: exactly one upstream request for 64 concurrent reads of one block.
func TestOneRequestForMany(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		g := newGate(blob)
		count := &blocktest.Counting{Next: g}
		parent := newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Source: count})
		p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
		var wg sync.WaitGroup
		waiting := make(chan struct{})
		for range 64 {
			wg.Go(func() {
				ctx := &watched{Context: context.Background(), waits: waiting}
				if got, err := p.Block(ctx, im.Ref(2)); err != nil || blockfmt.Verify(im.Ref(2), got) != nil {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		for range 64 {
			<-waiting
		}
		close(g.open)
		wg.Wait()
		if n := count.Total(); n != 1 {
			t.Errorf("%d upstream requests, want 1", n)
		}
		if n := parent.Counters().BlocksUp[stream.LaneDemand].Load(); n != 1 {
			t.Errorf("block was sent %d times", n)
		}
	})
}

// TestCanceledReads: reads that give up free their slots at both ends, and the parent's read ends with them.
func TestCanceledReads(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 2<<20, 4<<10)
		im := image(t, blob, 1)
		g := newGate(blob)
		parent := newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Source: g})
		p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for i := range stream.MaxWants {
				wg.Go(func() {
					_, err := p.Block(ctx, im.Ref(i))
					wantErr(t, "canceled read", err, context.Canceled)
				})
			}
			for range stream.MaxWants {
				<-g.entered
			}
			cancel()
			wg.Wait()
			for range stream.MaxWants {
				wantErr(t, "parent's read", <-g.left, context.Canceled)
			}
		}
		close(g.open)
		for i := range im.Len() {
			check(t, p, blob, i)
		}
		if n := parent.Counters().Canceled.Load(); n != 3*stream.MaxWants {
			t.Errorf("%d wants were canceled, want %d", n, 3*stream.MaxWants)
		}
	})
}

// TestCancelRaces: reads that come and go at random never get a wrong block, nor hang, nor leave anything behind.
func TestCancelRaces(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 200<<10, 8<<10)
		im := image(t, blob, 1)
		for _, at := range []stream.Attachment{backup, fed} {
			parent := newNode(t, stream.NodeConfig{Unit: 500})
			s := share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob), Source: blob})
			seen := newReports()
			p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{Report: seen.add}), stream.ShareConfig{Image: im, Store: forgetful{}}), at)
			var wg sync.WaitGroup
			for reader := range 16 {
				wg.Go(func() {
					for n := range 200 {
						ctx, cancel := context.WithCancel(context.Background())
						if n%3 == 0 {
							ctx = blockfmt.Background(ctx)
						}
						if n%2 == 0 {
							go cancel()
						}
						ref := im.Ref((n*7 + reader) % im.Len())
						got, err := p.Block(ctx, ref)
						if err == nil && blockfmt.Verify(ref, got) != nil || err != nil && !errors.Is(err, context.Canceled) {
							t.Errorf("%v: %d bytes, %v", ref, len(got), err)
						}
						cancel()
					}
				})
			}
			wg.Wait()
			for i := range im.Len() {
				check(t, p, blob, i)
			}
			if list := seen.all(); len(list) > 0 {
				t.Errorf("cut off: %v", list)
			}
			p.Close()
			s.Close()
		}
	})
}

// forgetful is a Store that keeps nothing.
type forgetful struct{}

func (forgetful) Block(context.Context, blockfmt.Ref) ([]byte, error) {
	return nil, blockfmt.ErrNotFound
}
func (forgetful) Has(blockfmt.Ref) bool                           { return false }
func (forgetful) Put(context.Context, blockfmt.Ref, []byte) error { return nil }

// TestErrorKindsTravel: a child learns the kind of what went wrong at its parent.
func TestErrorKindsTravel(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		for _, fault := range blocktest.Faults() {
			want := fault.Kind()
			switch fault {
			case blocktest.Stall:
				continue
			case blocktest.WrongBytes, blocktest.TooShort, blocktest.TooLong, blocktest.Empty, blocktest.Corrupt:
				want = blockfmt.ErrTransient // the parent saw it, and has nothing wrong to give
			}
			seen := newReports()
			parent := newNode(t, stream.NodeConfig{})
			share(t, parent, stream.ShareConfig{Image: im, Source: blocktest.Always(blob, fault)})
			p := edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{Report: seen.add}), stream.ShareConfig{Image: im}), backup)
			_, err := p.Block(t.Context(), im.Ref(0))
			wantErr(t, fault.String(), err, want)
			if len(seen.all()) > 0 {
				t.Errorf("%v: cut off: %v", fault, seen.all())
			}
		}
	})
}

// liar is a verified Source and Store of wrong bytes.
type liar struct{ *blocktest.Blob }

func (liar) Verified() bool                                  { return true }
func (liar) Has(blockfmt.Ref) bool                           { return true }
func (liar) Put(context.Context, blockfmt.Ref, []byte) error { return nil }
func (l liar) Block(_ context.Context, ref blockfmt.Ref) ([]byte, error) {
	return blocktest.WrongBytes.Apply(l.Bytes(ref)), nil
}

// TestWrongBytes: a parent that serves or pushes wrong bytes of the right length is cut off and reported, on any network, its
// bytes are not kept, and it cannot come back, in either direction.
func TestWrongBytes(t *testing.T) {
	for name, at := range map[string]stream.Attachment{"asked": backup, "pushed": fed} {
		t.Run(name, func(t *testing.T) {
			networks(t, func(t *testing.T, net network) {
				blob := blocktest.NewBlob(1, 64<<10, 16<<10)
				im := image(t, blob, 1)
				seen, store := newReports(), new(blocktest.Memory)
				parent, node := newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{Report: seen.add})
				upstream := share(t, parent, stream.ShareConfig{Image: im, Store: liar{blob}, Source: liar{blob}})
				child := share(t, node, stream.ShareConfig{Image: im, Store: store})
				p := edge(t, net, parent, child, at)
				if at == backup {
					_, err := p.Block(t.Context(), im.Ref(0))
					wantErr(t, "read", err, blockfmt.ErrCorrupt)
				}
				<-p.Done()
				<-seen.came
				if list := seen.all(); len(list) != 1 || list[0].Peer != net.name(parent) || list[0].Image != im.Digest() || !errors.Is(list[0].Reason, blockfmt.ErrCorrupt) {
					t.Errorf("reported %v", list)
				}
				if store.Len() != 0 || child.Have() != 0 {
					t.Errorf("%d blocks are kept, %d offered", store.Len(), child.Have())
				}
				_, err := net.attach(t.Context(), parent, child, at)
				wantErr(t, "attached again", err, blockfmt.ErrDenied)
				if _, err = net.attach(t.Context(), node, upstream, at); err == nil {
					t.Error("who was cut off became a child")
				}
			})
		})
	}
}

// TestUnauthorized: nobody whom the node does not allow gets an edge, and nothing of theirs is looked at.
func TestUnauthorized(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		nobody := func(stream.PeerID) error { return errors.New("not in this cluster") }
		strict, open := newNode(t, stream.NodeConfig{Authorize: nobody}), newNode(t, stream.NodeConfig{})
		a := share(t, strict, stream.ShareConfig{Image: im, Store: full(t, blob)})
		b := share(t, open, stream.ShareConfig{Image: im, Store: full(t, blob)})
		if _, err := net.attach(t.Context(), strict, b, fed); err == nil {
			t.Error("a stranger became a child")
		}
		_, err := net.attach(t.Context(), open, a, fed)
		wantErr(t, "attach to a stranger", err, blockfmt.ErrDenied)
		if len(a.Children())+len(b.Children()) > 0 {
			t.Errorf("children: %v, %v", a.Children(), b.Children())
		}
	})
}

// TestRevoked: edges with a peer that is revoked end, and there are no new ones.
func TestRevoked(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		var mu sync.Mutex
		revoked := false
		parent := newNode(t, stream.NodeConfig{Authorize: func(stream.PeerID) error {
			mu.Lock()
			defer mu.Unlock()
			if revoked {
				return errors.New("revoked")
			}
			return nil
		}})
		s := share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob), Source: blob})
		child := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im})
		p := edge(t, net, parent, child, backup)
		check(t, p, blob, 0)
		mu.Lock()
		revoked = true
		mu.Unlock()
		if h, ok := net.(*hosts); ok {
			if err := h.of(parent).Disconnect(net.name(child.Node())); err != nil {
				t.Error(err)
			}
		} else {
			parent.Drop(net.name(child.Node()))
		}
		<-p.Done()
		_, err := p.Block(t.Context(), im.Ref(1))
		wantErr(t, "read", err, blockfmt.ErrTransient)
		if _, err := net.attach(t.Context(), parent, child, backup); err == nil {
			t.Error("who was revoked attached again")
		}
		for len(s.Children()) > 0 {
			runtime.Gosched() // the parent's end ends a moment later
		}
	})
}

// TestParentDiesInMidBlock: reads fail at once, in a way that lets them go on elsewhere, and nothing of the torn block is
// kept.
func TestParentDiesInMidBlock(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 1032<<10, 1024<<10)
		im := image(t, blob, 1)
		parent, node := newNode(t, stream.NodeConfig{Unit: 1000, Up: 100_000}), newNode(t, stream.NodeConfig{})
		g := newGate(blob)
		share(t, parent, stream.ShareConfig{Image: im, Source: g})
		child := share(t, node, stream.ShareConfig{Image: im})
		p := edge(t, net, parent, child, backup)
		read := make(chan error)
		for _, i := range []int{1, 0} {
			go func() {
				_, err := p.Block(context.Background(), im.Ref(i))
				read <- err
			}()
			<-g.entered
		}
		close(g.open)
		first := <-read // the small block is here, and the large one on its way for five seconds
		net.kill(parent)
		second := <-read
		if first != nil {
			t.Errorf("small block: %v", first)
		}
		wantErr(t, "large block", second, blockfmt.ErrTransient)
		<-p.Done()
		if p.Err() == nil || child.Have() != 1 {
			t.Errorf("edge ended by %v with %d blocks", p.Err(), child.Have())
		}
	})
}

// TestDemandTravelsUpstream: each hop asks the next one in the lane in which it was asked, also when the lane changes on
// the way.
func TestDemandTravelsUpstream(t *testing.T) {
	networks(t, func(t *testing.T, net network) {
		blob := blocktest.NewBlob(1, 64<<10, 16<<10)
		im := image(t, blob, 1)
		type upstream struct {
			block int
			ctx   context.Context
		}
		asked := make(chan upstream)
		root := newNode(t, stream.NodeConfig{})
		share(t, root, stream.ShareConfig{Image: im, Source: blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
			asked <- upstream{ref.Number, ctx}
			<-blockfmt.Demand(ctx)
			return blob.Block(ctx, ref)
		})})
		var stack blockfmt.Source
		middle := newNode(t, stream.NodeConfig{})
		s := share(t, middle, stream.ShareConfig{Image: im, Source: blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
			return stack.Block(ctx, ref)
		})})
		stack = edge(t, net, root, s, backup)
		p := edge(t, net, middle, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im}), backup)

		var wg sync.WaitGroup
		wg.Go(func() { check(t, p, blob, 0) })
		if up := <-asked; up.block != 0 || !blockfmt.IsDemand(up.ctx) {
			t.Error("a demand read became one in the background")
		}
		background := blockfmt.Background(t.Context())
		wg.Go(func() {
			if got, err := p.Block(background, im.Ref(1)); err != nil || blockfmt.Verify(im.Ref(1), got) != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
		up := <-asked
		if up.block != 1 || blockfmt.IsDemand(up.ctx) {
			t.Error("a read in the background became a demand read")
		}
		blockfmt.Promote(background)
		<-blockfmt.Demand(up.ctx)
		wg.Wait()
	})
}

// TestDemandOvertakesThePush: on a busy edge, a demand read waits for one unit of the push and not for its queue.
func TestDemandOvertakesThePush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, unit = 100_000, 2000 // bytes a second
		blob := blocktest.NewBlob(1, 2<<20, 16<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		parent, node := newNode(t, stream.NodeConfig{Up: rate, Unit: unit}), newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob), Source: blob})
		store := newArrivals()
		child := share(t, node, stream.ShareConfig{Image: im, Store: store})
		p := edge(t, net, parent, child, fed)
		for range 10 {
			<-store.came
		}
		ref := im.Ref(im.Len() - 1)
		before, start := len(store.came), time.Now()
		check(t, p, blob, im.Len()-1)
		took, alone := time.Since(start), time.Duration(ref.Length)*time.Second/rate
		if limit := alone + 2*time.Duration(unit)*time.Second/rate; took > limit {
			t.Errorf("a demand read took %v, want at most %v; the block alone takes %v", took, limit, alone)
		}
		if n := len(store.came) - before; n > 0 {
			t.Errorf("%d pushed blocks came before the one demanded", n)
		}
		p.Close()
	})
}

// TestPromotedPush: a read of a block that is being pushed takes what has come of it along.
func TestPromotedPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 512<<10, 64<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		parent, node := newNode(t, stream.NodeConfig{Up: 100_000, Unit: 1000}), newNode(t, stream.NodeConfig{})
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob), Source: blob})
		child := share(t, node, stream.ShareConfig{Image: im})
		p := edge(t, net, parent, child, fed)
		time.Sleep(time.Duration(im.Ref(0).Length) * time.Second / 200_000) // half of the first block
		synctest.Wait()
		check(t, p, blob, 0)
		c := node.Counters()
		if got := c.BytesDown[stream.LanePush].Load() + c.BytesDown[stream.LaneDemand].Load(); got != im.Ref(0).Length {
			t.Errorf("%d bytes came for a block of %d", got, im.Ref(0).Length)
		}
		if up := parent.Counters().BytesUp[stream.LaneDemand].Load(); up == 0 || up == im.Ref(0).Length {
			t.Errorf("%d bytes in the demand lane, want the second half", up)
		}
		p.Close()
	})
}
