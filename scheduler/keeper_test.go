package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/scheduler/store/storetest"
	"github.com/xylem-project/xylem/tree"
)

// yard is a keeper on virtual time, with agents that send heartbeats until they are stopped.
type yard struct {
	k    *keeper
	stop func()

	agents map[string]*sheep
}

// sheep is an agent as far as a keeper is concerned.
type sheep struct {
	session   *session
	beating   bool
	heartbeat api.Heartbeat
	positions map[slot]api.Position
	unknown   []digest.Digest // of the last answer
}

type failer interface {
	Helper()
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

func newYard(t failer, self string, s store.Store) *yard {
	t.Helper()
	return newYardWith(t, self, s, nil)
}

func newYardWith(t failer, self string, s store.Store, log *slog.Logger) *yard {
	t.Helper()
	cfg := Default()
	cfg.Log = log
	if err := cfg.validate(); err != nil {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k, err := newKeeper(ctx, self, cfg, s, newMetrics())
	if err != nil {
		t.Fatalf("%v", err)
	}
	var tasks sync.WaitGroup
	for _, task := range []func(context.Context){
		k.announce, k.takeOver, k.watch,
		func(ctx context.Context) { k.follow(ctx, schedulersPrefix, k.setLive) },
		func(ctx context.Context) { k.follow(ctx, revokedPrefix, k.setRevoked) },
	} {
		tasks.Go(func() { task(ctx) })
	}
	y := &yard{k: k, agents: map[string]*sheep{}}
	y.stop = sync.OnceFunc(func() {
		cancel()
		tasks.Wait()
		k.tasks.Wait()
	})
	synctest.Wait()
	return y
}

const pasture = digest.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")

func (y *yard) session(t failer, id string, wanted ...digest.Digest) *sheep {
	t.Helper()
	h := api.Heartbeat{Agent: api.Peer{ID: id, Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:1")}}}
	s, err := y.k.open(api.SessionRequest{Heartbeat: h, Wanted: wanted})
	if err != nil {
		t.Fatalf("session of %s: %v", id, err)
	}
	a := &sheep{session: s, beating: true, heartbeat: h, positions: map[slot]api.Position{}}
	y.agents[id] = a
	return a
}

func (y *yard) enter(t failer, id string, images ...digest.Digest) {
	t.Helper()
	a := y.agents[id]
	if a == nil {
		a = y.session(t, id, images...)
	}
	for _, image := range images {
		ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
		err := y.k.enter(ctx, id, a.session.id, api.EnterRequest{Image: image, Ref: "ref", Total: []int{10, 10}})
		cancel()
		if err != nil {
			t.Fatalf("%s enters: %v", id, err)
		}
		if !slices.ContainsFunc(a.heartbeat.Images, func(m api.Membership) bool { return m.Image == image }) {
			a.heartbeat.Images = append(a.heartbeat.Images, api.Membership{Image: image})
		}
	}
}

func (y *yard) leave(t failer, id string, image digest.Digest) {
	t.Helper()
	a := y.agents[id]
	if err := y.k.quit(context.Background(), id, a.session.id, image); err != nil {
		t.Fatalf("%s leaves: %v", id, err)
	}
	a.heartbeat.Images = slices.DeleteFunc(a.heartbeat.Images, func(m api.Membership) bool { return m.Image == image })
	for stripe := range 2 {
		delete(a.positions, slot{image, stripe})
	}
}

// pass lets time pass, with heartbeats.
func (y *yard) pass(t failer, d time.Duration) {
	t.Helper()
	for ; d > 0; d -= time.Second {
		for id, a := range y.agents {
			if a.beating {
				y.beat(t, id)
			}
		}
		time.Sleep(min(d, time.Second))
		synctest.Wait()
	}
	y.listen(t)
}

func (y *yard) beat(t failer, id string) {
	t.Helper()
	a := y.agents[id]
	answer, err := y.k.heartbeat(id, a.session.id, a.heartbeat)
	if err != nil {
		t.Errorf("heartbeat of %s: %v", id, err)
	}
	a.unknown = answer.Unknown
}

// listen takes what agents were told.
func (y *yard) listen(t failer) {
	t.Helper()
	for id, a := range y.agents {
		for _, e := range a.session.take() {
			if e.Position == nil {
				continue
			}
			at := slot{e.Position.Image, e.Position.Stripe}
			if was := a.positions[at]; was.Epoch > e.Position.Epoch {
				t.Errorf("%s is told of epoch %x after %x", id, e.Position.Epoch, was.Epoch)
			}
			a.positions[at] = *e.Position
		}
	}
}

// members returns who is in the tree of an image, by name.
func (y *yard) members(image digest.Digest) (ids []string) {
	y.k.mu.Lock()
	defer y.k.mu.Unlock()
	if t := y.k.forest.Tree(image.String()); t != nil {
		for _, m := range t.Snapshot().Members {
			ids = append(ids, string(m.ID))
		}
	}
	return ids
}

func (y *yard) expect(t failer, image digest.Digest, want ...string) {
	t.Helper()
	if got := y.members(image); !slices.Equal(got, want) {
		t.Errorf("members %q, want %q", got, want)
	}
}

// herd makes agents a, b, c … that are in one tree.
func herd(t failer, y *yard, n int) []string {
	t.Helper()
	var ids []string
	for i := range n {
		ids = append(ids, string(rune('a'+i)))
		y.enter(t, ids[i], pasture)
	}
	return ids
}

// on runs a test on virtual time with a keeper of its own.
func on(t *testing.T, test func(t *testing.T, y *yard)) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, "https://s", store.NewMemory())
		defer y.stop()
		test(t, y)
	})
}

func TestSilentAgentsFail(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		ids := herd(t, y, 5)
		y.pass(t, 10*time.Second)
		y.expect(t, pasture, ids...)
		y.agents["c"].beating = false
		y.pass(t, 2*time.Second)
		y.expect(t, pasture, ids...)
		y.pass(t, 2*time.Second)
		y.expect(t, pasture, "a", "b", "d", "e")
		y.agents["c"].beating = true
		y.pass(t, time.Second)
		if a := y.agents["c"]; !slices.Equal(a.unknown, []digest.Digest{pasture}) {
			t.Errorf("c is back and hears that it is not in %v", a.unknown)
		}
		y.enter(t, "c", pasture)
		y.pass(t, time.Second)
		y.expect(t, pasture, ids...)
		if len(y.agents["c"].unknown) > 0 {
			t.Error("c is not in the tree")
		}
	})
}

// Reports of others shorten the time that a silent agent has, and harm nobody who is heard of.
func TestReports(t *testing.T) {
	report := func(y *yard, about string, by ...string) {
		for _, id := range by {
			y.agents[id].heartbeat.Images[0].Failed = []string{about}
		}
	}
	t.Run("heard of", func(t *testing.T) {
		on(t, func(t *testing.T, y *yard) {
			ids := herd(t, y, 5)
			report(y, "c", "a", "b", "d", "e")
			y.pass(t, 20*time.Second)
			y.expect(t, pasture, ids...)
		})
	})
	t.Run("silent", func(t *testing.T) {
		on(t, func(t *testing.T, y *yard) {
			herd(t, y, 5)
			y.pass(t, time.Second)
			report(y, "c", "a", "b")
			y.agents["c"].beating = false
			y.pass(t, time.Second)
			y.expect(t, pasture, "a", "b", "d", "e")
		})
	})
	t.Run("silent, one witness", func(t *testing.T) {
		on(t, func(t *testing.T, y *yard) {
			ids := herd(t, y, 5)
			y.pass(t, time.Second)
			report(y, "c", "a")
			y.agents["c"].beating = false
			y.pass(t, time.Second)
			y.expect(t, pasture, ids...)
		})
	})
	t.Run("session ended", func(t *testing.T) {
		on(t, func(t *testing.T, y *yard) {
			herd(t, y, 2)
			y.pass(t, time.Second)
			y.agents["b"].beating = false
			y.k.closed(y.agents["b"].session)
			report(y, "b", "a")
			y.beat(t, "a")
			y.expect(t, pasture, "a")
		})
	})
	t.Run("of strangers", func(t *testing.T) {
		on(t, func(t *testing.T, y *yard) {
			ids := herd(t, y, 3)
			report(y, "nobody", "a", "b")
			y.agents["c"].heartbeat.Images[0].Failed = []string{"c", "", "nobody"}
			y.pass(t, 5*time.Second)
			y.expect(t, pasture, ids...)
		})
	})
}

// While the scheduler itself did not run, nobody can be blamed for silence.
func TestSleepIsForgiven(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		ids := herd(t, y, 3)
		y.pass(t, time.Second)
		y.k.sweep(time.Now().Add(time.Hour)) // as after an hour of sleep
		y.expect(t, pasture, ids...)
	})
}

// Members of a tree that was taken over have longer to report; then they are missed.
func TestGraceAfterTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		first := newYard(t, "https://s", s)
		ids := herd(t, first, 4)
		first.stop()
		second := newYard(t, "https://s", s)
		defer second.stop()
		second.pass(t, time.Second)
		second.expect(t, pasture, ids...)
		second.enter(t, "b", pasture)
		second.pass(t, 5*time.Second)
		second.expect(t, pasture, ids...)
		second.pass(t, 6*time.Second)
		second.expect(t, pasture, "b")
		if p := second.agents["b"].positions[slot{pasture, 1}]; p.Parent != nil || p.Epoch>>seqBits != 2 {
			t.Errorf("b is told %+v", p)
		}
	})
}

// An agent that opens a session leaves what it does not want, and one that never speaks of an image does not need it.
func TestUnwantedMembershipsEnd(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		herd(t, y, 3)
		y.session(t, "b", "sha256:other")
		y.pass(t, time.Second)
		y.expect(t, pasture, "a", "c")
		y.agents["c"].heartbeat.Images = nil
		y.pass(t, 15*time.Second)
		y.expect(t, pasture, "a", "c")
		y.pass(t, 10*time.Second)
		y.expect(t, pasture, "a")
	})
}

func TestDrainingAgentFeedsNobody(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		ids := herd(t, y, 8)
		y.pass(t, time.Second)
		y.agents["a"].heartbeat.Draining = true
		y.pass(t, 2*time.Second)
		y.expect(t, pasture, ids...)
		for stripe := range 2 {
			if p := y.agents["a"].positions[slot{pasture, stripe}]; len(p.Children) > 0 || p.Parent == nil {
				t.Errorf("a is draining and is told %+v", p)
			}
		}
	})
}

// childOf returns somebody whom an agent feeds, and in which stripe.
func (y *yard) childOf(t failer, id string) (child string, stripe int) {
	t.Helper()
	for stripe := range 2 {
		if c := y.agents[id].positions[slot{pasture, stripe}].Children; len(c) > 0 {
			return c[0].ID, stripe
		}
	}
	t.Fatalf("%s feeds nobody", id)
	return "", 0
}

// Whom a child complains of, and who is measured to be slow, feeds nobody any more; others are told to avoid it.
func TestWhoIsOfNoUseBecomesALeaf(t *testing.T) {
	for name, tc := range map[string]struct {
		complain func(y *yard, child string)
		after    time.Duration
		both     bool
	}{
		"cut off":      {func(y *yard, child string) { y.agents[child].heartbeat.Images[0].CutOff = []string{"a"} }, 2 * time.Second, false},
		"out of reach": {func(y *yard, child string) { y.agents[child].heartbeat.Images[0].Failed = []string{"a"} }, 6 * time.Second, true},
		"slow": {func(y *yard, child string) {
			for _, id := range []string{"b", "c", "d", "e"} {
				y.agents[id].heartbeat.Sent, y.agents[id].heartbeat.Received = 1000, 600
			}
			y.agents["a"].heartbeat.Uplink, y.agents["a"].heartbeat.Waiting = 100, []string{child}
		}, 2 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(t *testing.T, y *yard) {
				ids := herd(t, y, 9)
				y.pass(t, time.Second)
				child, stripe := y.childOf(t, "a")
				if y.agents["a"].positions[slot{pasture, stripe}].Parent != nil {
					t.Fatal("a is no root, so this tests less than it should")
				}
				tc.complain(y, child)
				y.pass(t, tc.after)
				y.expect(t, pasture, ids...)
				told := 0
				for id, a := range y.agents {
					for at, p := range a.positions {
						if leaf := id == "a" || id == child && tc.both; leaf && (len(p.Children) > 0 || p.Parent == nil) {
							t.Errorf("%s is told %+v", id, p)
						}
						if p.Old == "a" && !p.LeaveOld {
							t.Errorf("%s is told that it may go on asking a in stripe %d", id, at.stripe)
						}
						for _, c := range p.Children {
							if c.ID == "a" && c.Avoid {
								told++
							} else if c.ID == "a" || c.Avoid && !(c.ID == child && tc.both) {
								t.Errorf("%s is told of its child %+v", id, c)
							}
						}
					}
				}
				if told != 2 {
					t.Errorf("%d of two parents are told to avoid a", told)
				}
			})
		})
	}
}

// The first standby of each root, and nobody else, is told that it is.
func TestStandbysAreTold(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		ids := herd(t, y, 9)
		y.pass(t, 2*time.Second)
		for range 3 {
			for stripe := range 2 {
				var standbys []string
				for _, id := range ids {
					p := y.agents[id].positions[slot{pasture, stripe}]
					if p.Standby {
						standbys = append(standbys, id)
						if root := y.agents[p.Parent.ID].positions[slot{pasture, stripe}]; root.Parent != nil {
							t.Errorf("%s is told that it follows %s, which is no root", id, p.Parent.ID)
						}
					}
				}
				if len(standbys) != 1 {
					t.Errorf("stripe %d: standbys %v, want one", stripe, standbys)
				}
			}
			y.leave(t, ids[0], pasture)
			ids = ids[1:]
			y.pass(t, 2*time.Second)
		}
	})
}

// Whoever moved tells its new address, and those who depend on it hear of it.
func TestNewAddressesAreTold(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		ids := herd(t, y, 6)
		y.pass(t, time.Second)
		next := []netip.AddrPort{netip.MustParseAddrPort("10.9.9.9:9")}
		y.agents["a"].heartbeat.Agent.Addrs = next
		y.pass(t, 2*time.Second)
		for _, id := range ids[1:] {
			for at, p := range y.agents[id].positions {
				for _, peer := range append(p.Backups, parents(p)...) {
					if peer.ID == "a" && !slices.Equal(peer.Addrs, next) {
						t.Errorf("%s is told that a is at %v in stripe %d", id, peer.Addrs, at.stripe)
					}
				}
			}
		}
	})
}

func parents(p api.Position) []api.Peer {
	if p.Parent == nil {
		return nil
	}
	return []api.Peer{*p.Parent}
}

// An agent that says that it knows other epochs, older or newer than there are, is told what is.
func TestStrangeEpochs(t *testing.T) {
	on(t, func(t *testing.T, y *yard) {
		herd(t, y, 4)
		y.pass(t, time.Second)
		for _, epochs := range [][]uint64{{0, 0}, {1 << 63, 1<<64 - 1}, {5}, {}} {
			a := y.agents["b"]
			a.heartbeat.Images[0].Epochs = epochs
			clear(a.positions)
			y.pass(t, time.Second)
			if len(a.positions) != len(epochs) {
				t.Errorf("epochs %x: told of %d places", epochs, len(a.positions))
			}
		}
		a := y.agents["b"]
		a.heartbeat.Images[0].Epochs = []uint64{a.positions[slot{pasture, 0}].Epoch, a.positions[slot{pasture, 1}].Epoch}
	})
}

// Records that make no tree are dropped, and the members' next epochs are later.
func TestDamagedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		first := newYard(t, "https://s", s)
		herd(t, first, 5)
		first.stop()
		key := membersOf(pasture) + "c"
		if _, err := s.Write(t.Context(), store.Tx{Put: []store.Item{{Key: key, Value: []byte(`{"id":"c"}`)}}}); err != nil {
			t.Fatal(err)
		}
		second := newYard(t, "https://s", s)
		defer second.stop()
		second.session(t, "a", pasture).heartbeat.Images = []api.Membership{{Image: pasture}}
		second.pass(t, time.Second)
		second.expect(t, pasture)
		if a := second.agents["a"]; len(a.unknown) != 1 {
			t.Error("a believes that it is in the tree")
		}
		second.enter(t, "a", pasture)
		second.pass(t, time.Second)
		second.expect(t, pasture, "a")
		if items, err := s.Read(t.Context(), membersOf(pasture)); err != nil || len(items) != 1 {
			t.Errorf("%d records %v", len(items), err)
		}
	})
}

func TestTermsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		record := item(ownersPrefix+pasture.String(), owner{Term: maxTerm, Scheduler: "https://s", Idle: true})
		if _, err := s.Write(t.Context(), store.Tx{Put: []store.Item{record}}); err != nil {
			t.Fatal(err)
		}
		y := newYard(t, "https://s", s)
		defer y.stop()
		a := y.session(t, "a", pasture)
		err := y.k.enter(t.Context(), "a", a.session.id, api.EnterRequest{Image: pasture, Total: []int{1, 1}})
		if !errors.Is(err, errOverflow) {
			t.Errorf("%v", err)
		}
	})
}

func TestWireEpoch(t *testing.T) {
	small, err := wireEpoch(tree.Epoch{Term: 1, Seq: maxSeq})
	large, err2 := wireEpoch(tree.Epoch{Term: 2})
	if err != nil || err2 != nil || small >= large {
		t.Errorf("%x %v, %x %v", small, err, large, err2)
	}
	for _, e := range []tree.Epoch{{Term: maxTerm + 1}, {Seq: maxSeq + 1}} {
		if _, err := wireEpoch(e); !errors.Is(err, errOverflow) {
			t.Errorf("%v: %v", e, err)
		}
	}
}

// Calls that wait for a store that does not answer end, trees stand still, and go on when it is back.
func TestStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		way := storetest.NewFaulty(store.NewMemory())
		y := newYard(t, "https://s", way)
		defer y.stop()
		herd(t, y, 3)
		y.pass(t, time.Second)
		way.Cut()
		a := y.session(t, "d", pasture)
		ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
		defer cancel()
		start := time.Now()
		err := y.k.enter(ctx, "d", a.session.id, api.EnterRequest{Image: pasture, Total: []int{1, 1}})
		if !errors.Is(err, errUnavailable) || time.Since(start) > answerTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		y.agents["b"].beating = false
		y.pass(t, 30*time.Second)
		for _, id := range []string{"a", "c"} {
			if p := y.agents[id].positions; len(p) != 2 {
				t.Errorf("%s is told %v", id, p)
			}
		}
		if got := y.members(pasture); !slices.Contains(got, "b") {
			t.Errorf("members %q", got)
		}
		way.Mend()
		y.pass(t, 5*time.Second)
		if got := y.members(pasture); slices.Contains(got, "b") {
			t.Errorf("members %q", got)
		}
		y.enter(t, "d", pasture)
		y.pass(t, time.Second)
		y.expect(t, pasture, "a", "c", "d")
	})
}

// A slow session keeps only the last of what is outdated, and one that never reads ends.
func TestSlowSession(t *testing.T) {
	s := newSession("a")
	for i := range 100 {
		s.post(api.Event{Position: &api.Position{Image: pasture, Epoch: uint64(i)}})
		s.post(api.Event{Position: &api.Position{Image: pasture, Stripe: 1, Epoch: uint64(i)}})
	}
	if events := s.take(); len(events) != 2 || events[0].Position.Epoch != 99 || events[1].Position.Epoch != 99 {
		t.Errorf("%d events", len(events))
	}
	for range maxEvents + 5 {
		s.post(api.Event{Moved: &api.Moved{}})
	}
	select {
	case <-s.over:
	default:
		t.Error("the session goes on")
	}
	if events := s.take(); events[len(events)-1].Bye == "" || len(events) > maxEvents+1 {
		t.Errorf("%d events", len(events))
	}
}

func TestRendezvous(t *testing.T) {
	before := []string{"https://a", "https://b", "https://c"}
	moved, counts := 0, map[string]int{}
	for i := range 3000 {
		image := digest.FromString(fmt.Sprint(i))
		was, is := rendezvous(image, before), rendezvous(image, before[:2])
		counts[was]++
		if was != is {
			moved++
			if was != "https://c" {
				t.Fatalf("%s moved from %s to %s", image, was, is)
			}
		}
	}
	if moved < 800 || moved > 1200 || slices.Min([]int{counts["https://a"], counts["https://b"]}) < 800 {
		t.Errorf("%v, %d moved", counts, moved)
	}
	if rendezvous("x", nil) != "" {
		t.Error("somebody of nobody owns x")
	}
}

// Whatever agents do, and however often schedulers start again or take over from each other: the records in the store are the
// tree, agents are never told of an older epoch after a newer one, and when all is quiet their places make a tree.
func TestAnyHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) { // hides Deadline, of which virtual time knows nothing
			f := &farm{store: &slow{Store: store.NewMemory(), left: -1}}
			f.open(t)
			defer func() { f.yard.stop() }()
			t.Repeat(map[string]func(*rapid.T){
				"enter": f.enter, "enter too": f.enter, "rush": f.rush, "leave": f.leave, "die": f.die, "restart": f.restart, "crash": f.crash,
				"time": f.time, "move": f.move, "drain": f.drain, "": f.check,
			})
		})
	})
}

// farm is what rapid plays with.
type farm struct {
	store *slow
	yard  *yard
}

// slow is a store that takes its time to write, and can die after some more writes.
type slow struct {
	store.Store
	mu   sync.Mutex
	left int // writes until it dies; negative: it does not
}

func (s *slow) die(after int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = after
}

func (s *slow) Write(ctx context.Context, tx store.Tx) (int64, error) {
	time.Sleep(time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return 0, store.ErrUnavailable
	}
	s.left--
	return s.Store.Write(ctx, tx)
}

// open starts a scheduler, whose name is the former one's or another. It may not have an error to log.
func (f *farm) open(t *rapid.T) *yard {
	log := slog.New(slog.NewTextHandler(complaint{t}, &slog.HandlerOptions{Level: slog.LevelError}))
	f.yard = newYardWith(t, fmt.Sprint("https://s", rapid.IntRange(0, 1).Draw(t, "scheduler")), f.store, log)
	time.Sleep(time.Second)
	synctest.Wait()
	return f.yard
}

type complaint struct{ t *rapid.T }

func (c complaint) Write(line []byte) (int, error) {
	c.t.Errorf("%s", line)
	return len(line), nil
}

var fields = []digest.Digest{pasture, digest.Digest("sha256:" + strings.Repeat("b", 64))}

func (f *farm) enter(t *rapid.T) {
	id, image := f.anyone(t), rapid.SampledFrom(fields).Draw(t, "image")
	f.yard.enter(t, id, image)
}

// anyone returns an agent that has a session.
func (f *farm) anyone(t *rapid.T) string {
	n := rapid.IntRange(0, 12).Draw(t, "agent")
	id := fmt.Sprint("n", n)
	if f.yard.agents[id] == nil {
		f.yard.session(t, id).heartbeat.Zone = fmt.Sprint(n % 3)
		f.yard.beat(t, id)
	}
	return id
}

// rush lets many enter at once, and does not care whether they can.
func (f *farm) rush(t *rapid.T) {
	var entering sync.WaitGroup
	for range rapid.IntRange(2, 8).Draw(t, "agents") {
		id, image := f.anyone(t), rapid.SampledFrom(fields).Draw(t, "image")
		a := f.yard.agents[id]
		if !slices.Contains(images(a), image) {
			a.heartbeat.Images = append(a.heartbeat.Images, api.Membership{Image: image})
		}
		entering.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
			defer cancel()
			f.yard.k.enter(ctx, id, a.session.id, api.EnterRequest{Image: image, Total: []int{10, 10}}) //nolint:errcheck // the store may be dead
		})
	}
	entering.Wait()
}

// crash lets the store die in the midst of a rush, and a new scheduler find what was written.
func (f *farm) crash(t *rapid.T) {
	f.store.die(rapid.IntRange(0, 4).Draw(t, "writes"))
	f.rush(t)
	f.yard.stop()
	f.store.die(-1)
	f.reopen(t)
}

func (f *farm) move(t *rapid.T) {
	a := f.yard.agents[f.someone(t)]
	a.heartbeat.Agent.Addrs = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(rapid.IntRange(1, 9).Draw(t, "port")))}
	f.yard.pass(t, time.Second)
}

func (f *farm) drain(t *rapid.T) {
	a := f.yard.agents[f.someone(t)]
	a.heartbeat.Draining = !a.heartbeat.Draining
	f.yard.pass(t, time.Second)
}

func (f *farm) someone(t *rapid.T) string {
	var ids []string
	for id, a := range f.yard.agents {
		if a.beating && len(a.heartbeat.Images) > 0 {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		t.Skip("nobody is there")
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(t, "agent")
}

func (f *farm) leave(t *rapid.T) {
	id := f.someone(t)
	f.yard.leave(t, id, f.yard.agents[id].heartbeat.Images[0].Image)
}

func (f *farm) die(t *rapid.T) {
	id := f.someone(t)
	f.yard.k.closed(f.yard.agents[id].session)
	delete(f.yard.agents, id)
	if rapid.Bool().Draw(t, "and missed") {
		f.yard.pass(t, 4*time.Second)
	}
}

// restart ends the scheduler without a farewell.
func (f *farm) restart(t *rapid.T) {
	f.yard.stop()
	f.reopen(t)
}

// reopen lets agents find the next scheduler.
func (f *farm) reopen(t *rapid.T) {
	agents := f.yard.agents
	next := f.open(t)
	for _, id := range slices.Sorted(maps.Keys(agents)) {
		was := agents[id]
		a := next.session(t, id, images(was)...)
		a.positions, a.heartbeat = was.positions, was.heartbeat
		a.heartbeat.Images = nil
		next.beat(t, id)
		next.enter(t, id, images(was)...)
	}
}

func images(a *sheep) (list []digest.Digest) {
	for _, m := range a.heartbeat.Images {
		list = append(list, m.Image)
	}
	return list
}

func (f *farm) time(t *rapid.T) {
	f.yard.pass(t, time.Duration(rapid.IntRange(1, 15).Draw(t, "seconds"))*time.Second)
}

func (f *farm) check(t *rapid.T) {
	time.Sleep(100 * time.Millisecond)
	synctest.Wait()
	y := f.yard
	y.listen(t)
	y.k.mu.Lock()
	defer y.k.mu.Unlock()
	if err := y.k.forest.Check(); err != nil {
		t.Fatalf("%v", err)
	}
	for _, image := range fields {
		f.checkRecords(t, image)
		f.checkPlaces(t, image)
	}
}

func (f *farm) checkRecords(t *rapid.T, image digest.Digest) {
	items, err := f.store.Read(context.Background(), membersOf(image))
	if err != nil {
		t.Fatalf("%v", err)
	}
	i := f.yard.k.images[image]
	if i == nil {
		if len(items) > 0 {
			t.Fatalf("%d records of a tree that is not there", len(items))
		}
		return
	}
	want := f.yard.k.forest.Tree(image.String()).Snapshot()
	if len(items) != len(want.Members) {
		t.Fatalf("%d records of %d members", len(items), len(want.Members))
	}
	for n, it := range items {
		r, err := decode[member](it)
		if err != nil || !slices.Equal(r.Attachments, want.Members[n].Attachments) || r.Role != want.Members[n].Role {
			t.Fatalf("record %s: %v %v, want %v", it.Key, r.Placed, err, want.Members[n])
		}
		if a := f.yard.agents[string(r.ID)]; a != nil && !slices.Equal(r.Peer.Addrs, a.heartbeat.Agent.Addrs) {
			t.Fatalf("record %s has addresses %v, the agent %v", it.Key, r.Peer.Addrs, a.heartbeat.Agent.Addrs)
		}
	}
}

func (f *farm) checkPlaces(t *rapid.T, image digest.Digest) {
	tr := f.yard.k.forest.Tree(image.String())
	for id, a := range f.yard.agents {
		for stripe := range 2 {
			p, told := a.positions[slot{image, stripe}]
			parent, member := tree.Registry, false
			if tr != nil {
				parent, member = tr.Parent(tree.ID(id), stripe)
			}
			if !member {
				continue
			}
			says := ""
			if p.Parent != nil {
				says = p.Parent.ID
			}
			if !told || says != string(parent) {
				t.Fatalf("%s is told that %q feeds it in stripe %d, it is %q", id, says, stripe, parent)
			}
			var children []string
			for _, c := range p.Children {
				children = append(children, c.ID)
			}
			for _, c := range tr.Children(tree.ID(id), stripe) {
				if !slices.Contains(children, string(c)) {
					t.Fatalf("%s is told that it feeds %q in stripe %d, not %q", id, children, stripe, c)
				}
			}
			if len(children) != len(tr.Children(tree.ID(id), stripe)) {
				t.Fatalf("%s is told that it feeds %q in stripe %d", id, children, stripe)
			}
		}
	}
}

// A scheduler whose tree another has claimed cannot write any more: whoever asks it to is sent on, and the tree is as the other left it.
func TestFormerOwnerCannotWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		y := newYard(t, "https://s", s)
		defer y.stop()
		herd(t, y, 3)
		y.pass(t, time.Second)
		before, err := s.Read(t.Context(), membersOf(pasture))
		if err != nil {
			t.Fatal(err)
		}
		claim := item(ownersPrefix+pasture.String(), owner{Term: 2, Scheduler: "https://other"})
		if _, err := s.Write(t.Context(), store.Tx{Put: []store.Item{claim}}); err != nil {
			t.Fatal(err)
		}
		a := y.session(t, "d", pasture)
		err = y.k.enter(t.Context(), "d", a.session.id, api.EnterRequest{Image: pasture, Total: []int{1, 1}})
		if elsewhere, ok := errors.AsType[*misdirected](err); !ok {
			t.Errorf("%v", elsewhere)
		}
		if after, err := s.Read(t.Context(), membersOf(pasture)); err != nil || !reflect.DeepEqual(after, before) {
			t.Errorf("records changed: %v", err)
		}
		if len(y.members(pasture)) > 0 {
			t.Error("the tree is there still")
		}
		moved := 0
		for _, id := range []string{"a", "b", "c"} {
			for _, e := range y.agents[id].session.take() {
				if e.Moved != nil && e.Moved.Image == pasture {
					moved++
				}
			}
		}
		if moved != 3 {
			t.Errorf("%d members hear that the tree is elsewhere", moved)
		}
	})
}

// However many events wait for one write, each of them is written as a whole or not at all.
func TestCrowdIsWrittenEventByEvent(t *testing.T) {
	for writes := range 8 {
		synctest.Test(t, func(t *testing.T) {
			s := &slow{Store: store.NewMemory(), left: writes}
			first := newYard(t, "https://s", s)
			var entering sync.WaitGroup
			for i := range 200 {
				id := fmt.Sprint("n", i)
				a := first.session(t, id, pasture)
				entering.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
					defer cancel()
					first.k.enter(ctx, id, a.session.id, api.EnterRequest{Image: pasture, Total: []int{1, 1}}) //nolint:errcheck // the store dies
				})
			}
			entering.Wait()
			first.stop()
			s.die(-1)
			var complaints strings.Builder
			second := newYardWith(t, "https://s", s, slog.New(slog.NewTextHandler(&complaints, &slog.HandlerOptions{Level: slog.LevelError})))
			defer second.stop()
			time.Sleep(time.Second)
			if complaints.Len() > 0 {
				t.Errorf("%d writes: %s", writes, complaints.String())
			}
			if n := len(second.members(pasture)); n == 0 && writes > 3 {
				t.Errorf("%d writes: %d members", writes, n)
			}
		})
	}
}
