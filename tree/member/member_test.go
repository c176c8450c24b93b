package member_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// crowd is four agents, of which every one is fed by the one before it in stripe 0, and by the one after it in stripe 1.
func crowd(w *world, edit ...func(*member.Config)) (a, b, c, d *agent) {
	a, b, c, d = w.agent("a", edit...), w.agent("b", edit...), w.agent("c", edit...), w.agent("d", edit...)
	w.place(1, 0, []*agent{a, b, c, d})
	w.place(1, 1, []*agent{d, c, b, a})
	return a, b, c, d
}

func TestAllHaveAllAndTheRegistryIsReadOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		crowd(w, all)
		time.Sleep(time.Minute)
		for id, a := range w.agents {
			if !a.full() {
				t.Errorf("%s has %d blocks of %d", id, a.member.Held(), w.image.Len())
			}
		}
		if n := w.registry.Total(); n != w.image.Len() {
			t.Errorf("%d reads of the registry, want %d", n, w.image.Len())
		}
	})
}

// TestRootBeginsWithOneBlock: the first block has the link to itself, and later as many are under way as may be.
func TestRootBeginsWithOneBlock(t *testing.T) {
	inWorld(t, func(w *world) {
		var running atomic.Int64
		a := w.agent("a", all, func(cfg *member.Config) {
			cfg.Workers = 5
			cfg.Origin = blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
				running.Add(1)
				defer running.Add(-1)
				time.Sleep(time.Second)
				return w.registry.Block(ctx, ref)
			})
		})
		w.place(1, 0, []*agent{a})
		for second, want := range []int64{1, 2, 4, 5, 5} {
			time.Sleep(time.Second / 2)
			if n := running.Load(); n != want {
				t.Errorf("%d blocks are under way in second %d, want %d", n, second, want)
			}
			time.Sleep(time.Second / 2)
		}
	})
}

func TestNothingIsFetchedUnasked(t *testing.T) {
	inWorld(t, func(w *world) {
		_, _, _, d := crowd(w)
		d.read(0, 2, 4)
		time.Sleep(time.Minute)
		if n := w.registry.Total(); n != 3 {
			t.Errorf("%d reads of the registry, want 3", n)
		}
	})
}

func TestReadsWaitForAPlace(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.agent("a")
		b := w.agent("b", func(cfg *member.Config) { cfg.Grace = time.Second })
		w.place(1, 0, []*agent{a})
		a.read(0)
		start := time.Now()
		done := make(chan struct{})
		go func() {
			b.read(0)
			close(done)
		}()
		synctest.Wait()
		w.place(2, 0, []*agent{a, b})
		<-done
		if took := time.Since(start); took >= time.Second || w.registry.Total() != 1 {
			t.Errorf("read after %v, %d reads of the registry", took, w.registry.Total())
		}
	})
}

func TestWithoutAPlaceTheRegistryIsRead(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.agent("a", func(cfg *member.Config) { cfg.Grace = time.Second })
		start := time.Now()
		a.read(0, 1, 2, 3)
		if took := time.Since(start); took > 1100*time.Millisecond {
			t.Errorf("four reads took %v, want the time for a first position once", took)
		}
	})
}

func TestBackupWhenTheParentDies(t *testing.T) {
	inWorld(t, func(w *world) {
		_, b, c, d := crowd(w)
		d.read(0)
		c.kill()
		start := time.Now()
		d.read(2)
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("read took %v after the parent's death", took)
		}
		if !d.hasFailed(c) || d.hasFailed(b) {
			t.Error("the death of the parent, and only that, should be reported")
		}
		if n := w.registry.Of(w.image.Ref(2)); n != 1 {
			t.Errorf("%d reads of the registry, by the root only", n)
		}
	})
}

func TestStandbyReadsTheRegistryAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _, _, d := crowd(w)
		d.read(0)
		a.kill()
		synctest.Wait()
		start := time.Now()
		d.read(2)
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("read took %v after the root's death", took)
		}
		if n := w.registry.Of(w.image.Ref(2)); n != 1 {
			t.Errorf("%d reads of the registry, want that of the standby", n)
		}
	})
}

func TestNewRootAsksItsChildrenFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.agent("a", all), w.agent("b", all)
		w.place(1, 0, []*agent{a})
		w.place(1, 1, []*agent{a})
		time.Sleep(time.Minute)
		w.place(2, 0, []*agent{b, a})
		w.place(2, 1, []*agent{a, b})
		time.Sleep(time.Minute)
		if n := w.registry.Total(); !b.full() || n != w.image.Len() {
			t.Errorf("the newcomer has %d; %d reads of the registry, want %d", b.member.Held(), n, w.image.Len())
		}
	})
}

func TestOldParentFeedsUntilTheNewOneDoes(t *testing.T) {
	inWorld(t, func(w *world) {
		var open atomic.Bool
		a, b := w.agent("a"), w.agent("b")
		c := w.agent("c", func(cfg *member.Config) {
			attach := cfg.Attach
			cfg.Attach = func(ctx context.Context, s *stream.Share, to stream.Address, at stream.Attachment) (*stream.Peer, error) {
				if to.ID == b.id && !open.Load() {
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
				return attach(ctx, s, to, at)
			}
		})
		w.place(1, 0, []*agent{a, b}, []*agent{a, c})
		c.read(0)
		w.place(2, 0, []*agent{a, b, c})
		synctest.Wait()
		c.read(2, 4)
		if n := w.registry.Total(); n != 3 {
			t.Errorf("%d reads of the registry, want 3 by the root", n)
		}
		if p := c.member.Parents()[0]; p != "" {
			t.Errorf("attached to %s", p)
		}
	})
}

func TestMovesToTheNewParent(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
		w.place(1, 0, []*agent{a, b}, []*agent{a, c})
		c.read(0)
		w.place(2, 0, []*agent{a, b, c})
		time.Sleep(time.Minute)
		if p := c.member.Parents()[0]; p != "b" || a.member.Children() != 1 || b.member.Children() != 1 {
			t.Errorf("c is fed by %q, a feeds %d, b feeds %d", p, a.member.Children(), b.member.Children())
		}
		w.place(1, 0, []*agent{a, c}) // late
		synctest.Wait()
		if e := c.member.Epochs(); e[0] != 2 || e[1] != 0 || c.member.Parents()[0] != "b" {
			t.Errorf("after a late position: epochs %d, parents %q", e, c.member.Parents())
		}
	})
}

func TestNobodyIsBlamedForBeingAheadOrBehind(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.agent("a"), w.agent("b")
		a.place(member.Position{Stripe: 0, Epoch: 5, Children: []member.Child{{Address: address(b), Epoch: 5}}})
		b.place(member.Position{Stripe: 0, Epoch: 4, Parent: address(a)}) // stale
		time.Sleep(time.Second)
		if b.hasFailed(a) {
			t.Error("a parent that knows a later epoch is reported as failed")
		}
		time.Sleep(10 * time.Second)
		if !b.hasFailed(a) {
			t.Error("nobody hears of a place that is refused for ever")
		}
		b.place(member.Position{Stripe: 0, Epoch: 5, Parent: address(a)})
		time.Sleep(5 * time.Second)
		if p := b.member.Parents()[0]; p != a.id {
			t.Errorf("b is fed by %q", p)
		}
	})
}

// TestDeadParentIsLeftAlone: who is placed elsewhere when its parent has died, not even below anybody, tries no longer to reach it.
func TestDeadParentIsLeftAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.agent("a"), w.agent("b")
		w.place(1, 0, []*agent{a, b})
		b.read(0)
		a.kill()
		time.Sleep(time.Second)
		w.place(2, 0, []*agent{b})
		synctest.Wait()
		tries := b.failures(a)
		time.Sleep(time.Minute)
		if n := b.failures(a); n != tries || n == 0 {
			t.Errorf("the former parent was tried %d times, and %d times when it was not wanted any more", tries, n-tries)
		}
	})
}

func TestUnknownStripe(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, stripe := range []int{-1, 2} {
			if err := w.agent(stream.PeerID(fmt.Sprint(stripe))).member.Place(member.Position{Stripe: stripe}); !errors.Is(err, blockfmt.ErrUnsupported) {
				t.Errorf("stripe %d: %v", stripe, err)
			}
		}
	})
}

func TestRegistryWhenNobodyElseIsLeft(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, c, d := crowd(w)
		for _, dead := range []*agent{a, b, c} {
			dead.kill()
		}
		start := time.Now()
		d.read(0)
		if took := time.Since(start); took < 500*time.Millisecond || took > 3*time.Second {
			t.Errorf("read took %v, want the time that a tree has to repair itself", took)
		}
	})
}

// TestWhoIsCutOffFeedsItselfAndItsChildren: an edge that does not come about and does not fail, as behind a firewall, costs each
// member the time once, not each read, and those below it nothing of the registry.
func TestWhoIsCutOffFeedsItselfAndItsChildren(t *testing.T) {
	inWorld(t, func(w *world) {
		walled := func(cfg *member.Config) {
			cfg.Attach = func(ctx context.Context, _ *stream.Share, _ stream.Address, _ stream.Attachment) (*stream.Peer, error) {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
		}
		a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c", walled), w.agent("d")
		w.place(1, 0, []*agent{a, b, c, d})
		start := time.Now()
		c.read(0, 2)
		if took := time.Since(start); took > 2500*time.Millisecond {
			t.Errorf("the first reads took %v", took)
		}
		start = time.Now()
		c.read(4, 6)
		d.read(8)
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("later reads took %v", took)
		}
		d.read(2, 4, 6)
		if n := w.registry.Total(); n != 5 {
			t.Errorf("%d reads of the registry, want one for each block", n)
		}
	})
}

func TestRootGoesOnWhenTheRegistryIsBack(t *testing.T) {
	inWorld(t, func(w *world) {
		var down atomic.Bool
		down.Store(true)
		a := w.agent("a", all, func(cfg *member.Config) {
			cfg.Origin = &blocktest.Faulty{Next: w.registry, Plan: func(blockfmt.Ref, int) blocktest.Fault {
				if down.Load() {
					return blocktest.Transient
				}
				return blocktest.None
			}}
		})
		w.place(1, 0, []*agent{a})
		w.place(1, 1, []*agent{a})
		time.Sleep(time.Minute)
		down.Store(false)
		time.Sleep(time.Minute)
		if !a.full() {
			t.Errorf("has %d", a.member.Held())
		}
	})
}

func TestWrongBytesOfTheRegistryReachNobody(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.agent("a", func(cfg *member.Config) { cfg.Origin = blocktest.Always(w.registry, blocktest.WrongBytes) })
		w.place(1, 0, []*agent{a})
		if _, err := a.member.Blocks().Block(context.Background(), w.image.Ref(0)); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%v, want ErrCorrupt", err)
		}
	})
}

func TestCloseEndsReads(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.agent("a", func(cfg *member.Config) { cfg.Origin = blocktest.Always(w.registry, blocktest.Stall) })
		failed := make(chan error)
		go func() {
			_, err := a.member.Blocks().Block(context.Background(), w.image.Ref(0))
			failed <- err
		}()
		synctest.Wait()
		if err := a.member.Close(); err != nil {
			t.Error(err)
		}
		if err := <-failed; err == nil {
			t.Error("a read outlives its member")
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := member.New(member.Config{}); err == nil {
		t.Error("an empty Config is accepted")
	}
}

// Whom a new root is told to avoid, as a child or as its former parent, it does not ask for what the registry has.
func TestNewRootAvoidsTheSlow(t *testing.T) {
	for _, avoid := range []bool{false, true} {
		inWorld(t, func(w *world) {
			a, b := w.agent("a"), w.agent("b")
			w.place(1, 0, []*agent{a})
			a.read(0)
			b.place(member.Position{Epoch: 2, Children: []member.Child{{Address: address(a), Epoch: 2, Avoid: avoid}}})
			a.place(member.Position{Epoch: 2, Parent: address(b)})
			synctest.Wait()
			b.read(0)
			if n, want := w.registry.Of(w.image.Ref(0)), map[bool]int{false: 1, true: 2}[avoid]; n != want {
				t.Errorf("avoid %t: %d reads of what the child had, want %d", avoid, n, want)
			}
			a.place(member.Position{Epoch: 3})
			b.place(member.Position{Epoch: 3, Parent: address(a)})
			synctest.Wait()
			b.place(member.Position{Epoch: 4, LeaveOld: avoid})
			synctest.Wait() // the edge that is left has ended
			a.read(2)
			synctest.Wait()
			b.read(2)
			if n, want := w.registry.Of(w.image.Ref(2)), map[bool]int{false: 1, true: 2}[avoid]; n != want {
				t.Errorf("avoid %t: %d reads of what the former parent had, want %d", avoid, n, want)
			}
		})
	}
}
