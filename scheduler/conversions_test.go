package scheduler

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/scheduler/store/storetest"
)

var (
	grape = digest.FromString("source image")
	wine  = digest.FromString("its block image")
)

// ask asks who converts the grape, as an agent that would.
func (y *yard) ask(t failer, id string) api.Conversion {
	t.Helper()
	return y.askWith(t, id, api.ConvertRequest{Source: grape, Willing: true})
}

func (y *yard) askWith(t failer, id string, r api.ConvertRequest) api.Conversion {
	t.Helper()
	if y.agents[id] == nil {
		y.session(t, id)
	}
	answer, err := y.k.convert(context.Background(), id, y.agents[id].session.id, r)
	if err != nil {
		t.Errorf("%s asks: %v", id, err)
	}
	return answer
}

// expectState asks in the name of agents and compares the answers.
func (y *yard) expectState(t failer, want api.ConversionState, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if got := y.ask(t, id); got.State != want {
			t.Errorf("%s hears %+v, want %q", id, got, want)
		}
	}
}

// tell reports a conversion in the name of an agent.
func (y *yard) tell(id string, r api.ConvertedRequest) error {
	r.Source, r.Agent = grape, api.Peer{ID: id, Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:9752")}}
	return y.k.converted(context.Background(), id, y.agents[id].session.id, r)
}

func (y *yard) done(t failer, id, pushed string) {
	t.Helper()
	y.expectState(t, api.ConversionYours, id)
	if err := y.tell(id, api.ConvertedRequest{Image: wine, Pushed: pushed}); err != nil {
		t.Errorf("%s reports: %v", id, err)
	}
}

// hold says that an agent keeps what it converted, for a time.
func (y *yard) hold(t failer, id string, d time.Duration) {
	t.Helper()
	for ; d > 0; d -= api.HolderTimeout / 5 {
		at := api.Peer{ID: id, Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.10:9752")}}
		if err := y.k.holding(context.Background(), id, y.agents[id].session.id, at); err != nil {
			t.Errorf("%s holds: %v", id, err)
		}
		y.pass(t, api.HolderTimeout/5)
	}
}

// leaves ends the session of an agent.
func (y *yard) leaves(id string) {
	y.agents[id].beating = false
	y.k.closed(y.agents[id].session)
}

func TestOneAgentConverts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := store.NewMemory()
		yards := []*yard{newYard(t, "https://s1", shared), newYard(t, "https://s2", shared)}
		var wg sync.WaitGroup
		var mu sync.Mutex
		said := map[api.ConversionState]int{}
		ids := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		for i, id := range ids {
			yards[i%2].session(t, id)
		}
		for i, id := range ids {
			wg.Go(func() {
				answer := yards[i%2].ask(t, id)
				mu.Lock()
				defer mu.Unlock()
				said[answer.State]++
			})
		}
		wg.Wait()
		if said[api.ConversionYours] != 1 || said[api.ConversionTheirs] != 7 {
			t.Errorf("eight agents hear %v", said)
		}
		for _, y := range yards {
			y.stop()
		}
	})
}

func TestConversionLease(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		y.expectState(t, api.ConversionYours, "a")
		for range 5 { // renewed, it lasts
			y.pass(t, api.ConversionLease*2/3)
			y.expectState(t, api.ConversionYours, "a")
			y.expectState(t, api.ConversionTheirs, "b")
		}
		y.pass(t, api.ConversionLease+time.Second)
		y.expectState(t, api.ConversionYours, "b")
		y.expectState(t, api.ConversionTheirs, "a")
		if err := y.tell("a", api.ConvertedRequest{Image: wine}); !errors.Is(err, errNoLease) {
			t.Errorf("a reports what is b's: %v", err)
		}
		if err := y.tell("b", api.ConvertedRequest{Image: wine}); err != nil {
			t.Errorf("b reports: %v", err)
		}
		if err := y.tell("b", api.ConvertedRequest{Image: grape}); !errors.Is(err, errNoLease) {
			t.Errorf("b reports twice: %v", err)
		}
	})
}

// An agent that does not convert itself hears the same, and takes no lease.
func TestConversionIsLookedUp(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		look := api.ConvertRequest{Source: grape}
		for _, want := range []api.ConversionState{api.ConversionNone, api.ConversionNone} {
			if got := y.askWith(t, "a", look); got.State != want {
				t.Errorf("%+v, want %q", got, want)
			}
		}
		y.expectState(t, api.ConversionYours, "b")
		if got := y.askWith(t, "a", look); got.State != api.ConversionTheirs {
			t.Errorf("%+v while b converts", got)
		}
		y.done(t, "b", "")
		got := y.askWith(t, "a", look)
		if got.State != api.ConversionDone || got.Image != wine || got.Holder == nil || got.Holder.ID != "b" || got.Holder.Addrs[0].Port() != 9752 {
			t.Errorf("%+v after b converted", got)
		}
	})
}

// The lease of an agent whose session has ended is free as soon as it counts as failed.
func TestConverterLeaves(t *testing.T) {
	for name, trees := range map[string][]digest.Digest{"in a tree": {pasture}, "in none": nil} {
		t.Run(name, func(t *testing.T) {
			on(t, func(t *testing.T, y *yard) {
				y.enter(t, "a", trees...)
				y.enter(t, "b", trees...)
				y.pass(t, y.k.cfg.Grace.Duration)
				y.expectState(t, api.ConversionYours, "a")
				y.leaves("a")
				y.pass(t, time.Second)
				y.expectState(t, api.ConversionTheirs, "b")
				y.pass(t, y.k.cfg.Timeout.Duration)
				y.expectState(t, api.ConversionYours, "b")
			})
		})
	}
}

// A scheduler that has just started knows nobody, and takes no lease for that; nor does one of several, because it does not know all.
func TestConverterOfAnotherScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := store.NewMemory()
		former := newYard(t, "https://s1", shared)
		former.expectState(t, api.ConversionYours, "a")
		former.stop()
		y := newYard(t, "https://s1", shared)
		y.session(t, "b")
		y.pass(t, y.k.cfg.Grace.Duration-time.Second)
		y.expectState(t, api.ConversionTheirs, "b")
		y.pass(t, 2*time.Second)
		y.expectState(t, api.ConversionYours, "b")
		y.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		shared := store.NewMemory()
		yards := []*yard{newYard(t, "https://s1", shared), newYard(t, "https://s2", shared)}
		for _, y := range yards {
			y.session(t, y.k.self+"'s")
			y.pass(t, y.k.cfg.Grace.Duration)
		}
		yards[0].expectState(t, api.ConversionYours, "https://s1's")
		yards[1].pass(t, api.ConversionLease-time.Second)
		yards[1].expectState(t, api.ConversionTheirs, "https://s2's")
		yards[1].pass(t, 2*time.Second)
		yards[1].expectState(t, api.ConversionYours, "https://s2's")
		for _, y := range yards {
			y.stop()
		}
	})
}

func TestHolderOfABlockImage(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		y.done(t, "a", "")
		y.session(t, "b")
		y.hold(t, "a", 2*api.HolderTimeout)
		if got := y.ask(t, "b"); got.State != api.ConversionDone || got.Holder.Addrs[0].Addr().String() != "10.0.0.10" {
			t.Errorf("%+v of a holder that has moved", got)
		}
		y.leaves("a")
		y.pass(t, api.HolderTimeout-api.HolderTimeout/5)
		y.expectState(t, api.ConversionDone, "b")
		y.pass(t, api.HolderTimeout/5+time.Second)
		y.expectState(t, api.ConversionYours, "b")
	})
}

// A block image that is not where it was said to be is made again; one of an earlier answer says nothing of the present one.
func TestMissingBlockImage(t *testing.T) {
	for _, pushed := range []string{"", "registry.example/app"} {
		on(t, func(t *testing.T, y *yard) {
			y.done(t, "a", pushed)
			other := api.ConvertRequest{Source: grape, Missing: grape, Willing: true}
			if got := y.askWith(t, "b", other); got.State != api.ConversionDone {
				t.Errorf("%+v where another block image is missing", got)
			}
			if got := y.askWith(t, "b", api.ConvertRequest{Source: grape, Missing: wine}); got.State != api.ConversionNone {
				t.Errorf("%+v where it is missing", got)
			}
			if got := y.askWith(t, "b", api.ConvertRequest{Source: grape, Missing: wine, Willing: true}); got.State != api.ConversionYours {
				t.Errorf("%+v where it is missing", got)
			}
		})
	}
}

func TestPushedBlockImageNeedsNoHolder(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		y.done(t, "a", "registry.example/app")
		y.leaves("a")
		y.pass(t, 2*api.HolderTimeout)
		if got := y.ask(t, "b"); got.State != api.ConversionDone || got.Holder != nil || got.Image != wine || got.Pushed != "registry.example/app" {
			t.Errorf("%+v", got)
		}
	})
}

// What a revoked agent does or has done counts no more.
func TestRevokedConverter(t *testing.T) {
	revoke := func(t *testing.T, y *yard, id string) {
		t.Helper()
		if _, err := y.k.store.Write(t.Context(), store.Tx{Put: []store.Item{item(revokedPrefix+id, revocation{})}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
	}
	on(t, func(t *testing.T, y *yard) {
		y.expectState(t, api.ConversionYours, "a")
		revoke(t, y, "a")
		y.expectState(t, api.ConversionYours, "b")
	})
	for _, pushed := range []string{"", "registry.example/app"} {
		on(t, func(t *testing.T, y *yard) {
			y.done(t, "a", pushed)
			y.expectState(t, api.ConversionDone, "b")
			revoke(t, y, "a")
			y.expectState(t, api.ConversionYours, "b")
		})
	}
}

func TestFailedConversion(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		y.expectState(t, api.ConversionYours, "a")
		if err := y.tell("a", api.ConvertedRequest{Failed: "the layer is broken"}); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"a", "b"} {
			if got := y.ask(t, id); got.State != api.ConversionFailed || got.Why != "the layer is broken" || time.Until(got.NotBefore) != failedPause {
				t.Errorf("%s hears %+v", id, got)
			}
		}
		y.pass(t, failedPause)
		y.expectState(t, api.ConversionYours, "b")
	})
}

// Who cannot convert an image gives the lease back, for others that may be able to.
func TestReturnedLease(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		y.expectState(t, api.ConversionYours, "a")
		if err := y.tell("a", api.ConvertedRequest{}); err != nil {
			t.Fatal(err)
		}
		y.expectState(t, api.ConversionYours, "b")
	})
}

// An agent without a session is nobody, and without the store nothing is promised.
func TestConversionsNeedSessionAndStore(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		r := api.ConvertRequest{Source: grape, Willing: true}
		if _, err := y.k.convert(t.Context(), "a", "none", r); !errors.Is(err, errNoSession) {
			t.Errorf("without session: %v", err)
		}
		if err := y.k.converted(t.Context(), "a", "none", api.ConvertedRequest{Source: grape}); !errors.Is(err, errNoSession) {
			t.Errorf("without session: %v", err)
		}
		if err := y.k.holding(t.Context(), "a", "none", api.Peer{ID: "a"}); !errors.Is(err, errNoSession) {
			t.Errorf("without session: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		way := storetest.NewFaulty(store.NewMemory())
		y := newYard(t, "https://s", way)
		defer y.stop()
		a := y.session(t, "a")
		way.Cut()
		if _, err := y.k.convert(t.Context(), "a", a.session.id, api.ConvertRequest{Source: grape, Willing: true}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("without a store: %v", err)
		}
		way.Mend()
		y.expectState(t, api.ConversionYours, "a")
	})
}
