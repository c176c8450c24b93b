package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// candidate is a Source that takes a while, and counts.
type candidate struct {
	blocktest.Counting
	takes    time.Duration
	mu       sync.Mutex
	canceled int
	progress func() stream.Progress
	lacks    bool
}

func newCandidate(next blockfmt.Source, takes time.Duration) *candidate {
	return &candidate{Counting: blocktest.Counting{Next: next}, takes: takes}
}

const forever = time.Hour

func (c *candidate) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	stored, err := c.Counting.Block(ctx, ref)
	select {
	case <-time.After(c.takes):
		return stored, err
	case <-ctx.Done():
		c.mu.Lock()
		c.canceled++
		c.mu.Unlock()
		return nil, ctx.Err()
	}
}

func (c *candidate) Progress(blockfmt.Ref) stream.Progress {
	if c.progress == nil {
		return stream.Progress{}
	}
	return c.progress()
}

func (c *candidate) Has(blockfmt.Ref) bool { return !c.lacks }

func newLadder(t testing.TB, cfg stream.LadderConfig, rungs ...stream.Rung) *stream.Ladder {
	l := stream.NewLadder(cfg)
	l.Set(rungs...)
	t.Cleanup(func() { l.Close() })
	return l
}

func rung(name string, src blockfmt.Source) stream.Rung { return stream.Rung{Name: name, Source: src} }

func TestLadderIsSource(t *testing.T) {
	for name, first := range map[string]func(blob *blocktest.Blob) blockfmt.Source{
		"good":  func(blob *blocktest.Blob) blockfmt.Source { return blob },
		"lying": func(blob *blocktest.Blob) blockfmt.Source { return blocktest.Always(blob, blocktest.WrongBytes) },
		"empty": func(*blocktest.Blob) blockfmt.Source { return new(blocktest.Memory) },
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Source(t, func(t *testing.T, blob *blocktest.Blob) blockfmt.Source {
				return newLadder(t, stream.LadderConfig{}, rung("a", first(blob)), rung("b", blob))
			})
		})
	}
}

// ladderTest is a ladder of three, on virtual time.
type ladderTest struct {
	*testing.T
	blob                   *blocktest.Blob
	parent, backup, origin *candidate
	counters               stream.Counters
	*stream.Ladder
}

func onLadder(t *testing.T, test func(l *ladderTest)) {
	synctest.Test(t, func(t *testing.T) {
		l := &ladderTest{T: t, blob: blocktest.NewBlob(1, 1<<20, 4<<10)}
		l.parent, l.backup, l.origin = newCandidate(l.blob, 10*time.Millisecond), newCandidate(l.blob, 20*time.Millisecond), newCandidate(l.blob, 30*time.Millisecond)
		l.Ladder = stream.NewLadder(stream.LadderConfig{Counters: &l.counters})
		l.Set(l.rungs()...)
		test(l)
		l.Close()
	})
}

func (l *ladderTest) rungs() []stream.Rung {
	return []stream.Rung{rung("parent", l.parent), rung("backup", l.backup), {Name: "origin", Source: l.origin, Origin: true}}
}

// read reads a block, which must be right, and returns how long it took.
func (l *ladderTest) read(i int) time.Duration {
	l.Helper()
	start := time.Now()
	check(l, l.Ladder, l.blob, i)
	return time.Since(start)
}

// asked checks how often each candidate was asked.
func (l *ladderTest) asked(what string, want ...int) {
	l.Helper()
	if got := []int{l.parent.Total(), l.backup.Total(), l.origin.Total()}; !slices.Equal(got, want) {
		l.Errorf("%s: parent, backup, origin were asked %v times, want %v", what, got, want)
	}
}

func between(t testing.TB, what string, d, low, high time.Duration) {
	t.Helper()
	if d < low || d > high {
		t.Errorf("%s took %v, want %v to %v", what, d, low, high)
	}
}

func TestLadderAsksTheParent(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		for i := range 20 {
			between(t, "read", l.read(i), l.parent.takes, l.parent.takes)
		}
		l.asked("all is well", 20, 0, 0)
	})
}

// TestLadderStall: a parent that stalls is left within the progress deadline, its request goes on until the other wins and
// is canceled then, and the next reads go to the backup at once.
func TestLadderStall(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		for i := range 20 {
			l.read(i)
		}
		l.parent.takes = forever
		between(t, "read over a stall", l.read(20), 150*time.Millisecond+l.backup.takes, 150*time.Millisecond+l.backup.takes)
		l.asked("first read", 21, 1, 0)
		synctest.Wait()
		if l.parent.canceled != 1 {
			t.Errorf("%d requests were canceled", l.parent.canceled)
		}
		between(t, "next read", l.read(21), l.backup.takes, l.backup.takes)
		l.asked("next read", 21, 2, 0)
		if h, w, s := l.counters.Hedges.Load(), l.counters.HedgesWon.Load(), l.counters.Stalls.Load(); h != 1 || w != 1 || s != 1 {
			t.Errorf("%d hedges, %d won, %d stalls", h, w, s)
		}
		l.parent.takes = 10 * time.Millisecond
		time.Sleep(2 * time.Second) // virtual: put back no longer
		between(t, "read after a pause", l.read(22), l.parent.takes, l.parent.takes)
	})
}

// TestLadderSlowAnswerWins: a hedge does not end the request that it is in addition to.
func TestLadderSlowAnswerWins(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		l.parent.takes, l.backup.takes = 350*time.Millisecond, forever
		between(t, "read", l.read(0), l.parent.takes, l.parent.takes)
		l.asked("read", 1, 1, 0)
		synctest.Wait()
		if l.backup.canceled != 1 || l.counters.HedgesWon.Load() != 0 {
			t.Errorf("backup: %d canceled, %d hedges won", l.backup.canceled, l.counters.HedgesWon.Load())
		}
	})
}

// TestLadderFailure: errors move on at once, of whatever kind, and do not cost a hedge.
func TestLadderFailure(t *testing.T) {
	for _, fault := range blocktest.Faults() {
		if fault == blocktest.Stall {
			continue
		}
		t.Run(fault.String(), func(t *testing.T) {
			onLadder(t, func(l *ladderTest) {
				l.parent.takes = 0
				l.parent.Next = blocktest.Always(l.blob, fault)
				between(t, "read", l.read(0), l.backup.takes, l.backup.takes)
				l.backup.takes = 0
				l.backup.Next = blocktest.Always(l.blob, fault)
				between(t, "read with both failing", l.read(1), l.origin.takes, l.origin.takes)
				if l.counters.Hedges.Load() != 0 {
					t.Error("a request after a failure counts as a hedge")
				}
			})
		})
	}
}

// TestLadderErrors: when all fail, the reader learns whether it is worth to try again.
func TestLadderErrors(t *testing.T) {
	for _, tc := range []struct {
		parent, backup, origin blocktest.Fault
		want                   error
	}{
		{blocktest.Transient, blocktest.NotFound, blocktest.Denied, blockfmt.ErrTransient},
		{blocktest.NotFound, blocktest.NotFound, blocktest.NotFound, blockfmt.ErrNotFound},
		{blocktest.NotFound, blocktest.WrongBytes, blocktest.Denied, blockfmt.ErrDenied},
		{blocktest.NotFound, blocktest.NotFound, blocktest.TooShort, blockfmt.ErrCorrupt},
	} {
		onLadder(t, func(l *ladderTest) {
			l.parent.Next, l.backup.Next, l.origin.Next = blocktest.Always(l.blob, tc.parent), blocktest.Always(l.blob, tc.backup), blocktest.Always(l.blob, tc.origin)
			_, err := l.Block(l.Context(), l.blob.Index.Ref(0))
			wantErr(t, fmt.Sprint(tc.parent, tc.backup, tc.origin), err, tc.want)
			l.asked("each once", 1, 1, 1)
		})
	}
	l := newLadder(t, stream.LadderConfig{})
	_, err := l.Block(t.Context(), blocktest.NewBlob(1, 1<<10, 1<<10).Index.Ref(0))
	wantErr(t, "no rungs", err, blockfmt.ErrTransient)
}

// TestLadderBudget: when everybody is slow, as in congestion, hedges stay a few percent of the blocks.
func TestLadderBudget(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		for _, c := range []*candidate{l.parent, l.backup, l.origin} {
			c.takes = 3 * time.Second
			c.progress = func() stream.Progress { return stream.Progress{Heard: time.Now()} } // alive, not dead
		}
		var wg sync.WaitGroup
		const reads = 200
		for i := range reads {
			wg.Go(func() { check(t, l.Ladder, l.blob, i) })
			time.Sleep(10 * time.Millisecond)
		}
		wg.Wait()
		if n, limit := l.backup.Total(), 4+reads/20; n > limit || n == 0 {
			t.Errorf("%d of %d blocks were hedged, want some, at most %d", n, reads, limit)
		}
		if n, limit := l.origin.Total(), 1+reads/100; n > limit {
			t.Errorf("%d blocks were read from the origin, want at most %d", n, limit)
		}
	})
}

// TestLadderDeadPeersCostNoBudget: that a machine died is no congestion; nobody waits for the budget then.
func TestLadderDeadPeersCostNoBudget(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		l.parent.takes = forever
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { between(t, "read", l.read(i), 300*time.Millisecond, 950*time.Millisecond) })
		}
		wg.Wait()
		if l.origin.Total() > 0 {
			t.Errorf("%d blocks were read from the origin with the backup alive", l.origin.Total())
		}
	})
}

// TestLadderProgress: a block that comes slowly, or waits for others that do, is not late; one that does not come while
// others do is, in the end.
func TestLadderProgress(t *testing.T) {
	for name, tc := range map[string]struct {
		progress func() stream.Progress
		hedges   int64
	}{
		"block comes":      {func() stream.Progress { return stream.Progress{Block: time.Now()} }, 0},
		"others come":      {func() stream.Progress { return stream.Progress{Asked: time.Now()} }, 1},
		"only pushes come": {func() stream.Progress { return stream.Progress{Heard: time.Now()} }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			onLadder(t, func(l *ladderTest) {
				l.Set(l.rungs()[:2]...)
				l.parent.takes, l.parent.progress, l.backup.takes = 5*time.Second, tc.progress, forever
				between(t, "read", l.read(0), l.parent.takes, l.parent.takes)
				if n := l.counters.Hedges.Load(); n != tc.hedges {
					t.Errorf("%d hedges, want %d", n, tc.hedges)
				}
				if n := l.counters.Stalls.Load(); n != tc.hedges { // the backup's
					t.Errorf("%d candidates were put back, want %d", n, tc.hedges)
				}
				l.read(1)
				if n := l.parent.Total(); n != 2 {
					t.Error("a parent that is alive was put back")
				}
			})
		})
	}
}

// TestLadderBackground: reads in the background are not hedged as long as the parent is alive, and are when they become
// demand reads.
func TestLadderBackground(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		l.parent.takes = forever
		l.parent.progress = func() stream.Progress { return stream.Progress{Heard: time.Now()} }
		ctx := blockfmt.Background(l.Context())
		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() {
			if _, err := l.Block(ctx, l.blob.Index.Ref(0)); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(10 * time.Second)
		l.asked("in the background", 1, 0, 0)
		blockfmt.Promote(ctx)
		wg.Wait()
		between(t, "read", time.Since(start), 10*time.Second, 11*time.Second)
		l.asked("as demand", 1, 1, 0)
	})
}

// TestLadderPrefersWhoHas: among those that are asked in addition, who has the block goes first.
func TestLadderPrefersWhoHas(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		cross := newCandidate(l.blob, 20*time.Millisecond)
		l.Set(append(l.rungs(), rung("cross-stripe", cross))...)
		l.parent.takes, l.parent.lacks, l.backup.lacks = forever, true, true
		l.read(0)
		if l.parent.Total() != 1 || l.backup.Total() != 0 || cross.Total() != 1 {
			t.Errorf("asked parent %d, backup %d, cross-stripe peer %d times", l.parent.Total(), l.backup.Total(), cross.Total())
		}
	})
}

// TestLadderAfter: the registry is left alone until the tree had the time to repair itself, and not asked at all if it did.
func TestLadderAfter(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		dead := blocktest.Always(l.blob, blocktest.Transient)
		origin := stream.Rung{Name: "origin", Source: l.origin, Origin: true, After: 2 * time.Second}
		l.Set(rung("parent", dead), origin)
		between(t, "read", l.read(0), 2*time.Second, 2*time.Second+l.origin.takes)
		var wg sync.WaitGroup
		wg.Go(func() {
			between(t, "read while the tree is repaired", l.read(1), time.Second, time.Second+l.backup.takes)
		})
		time.Sleep(time.Second)
		l.Set(rung("parent", dead), rung("new parent", l.backup), origin)
		wg.Wait()
		l.asked("after the repair", 0, 1, 1)
	})
}

// TestLadderEnds: reads end with their context and with the ladder, and leave no request behind.
func TestLadderEnds(t *testing.T) {
	onLadder(t, func(l *ladderTest) {
		l.parent.takes, l.backup.takes, l.origin.takes = forever, forever, forever
		ctx, cancel := context.WithTimeoutCause(l.Context(), 3*time.Second, errors.New("enough"))
		defer cancel()
		start := time.Now()
		if _, err := l.Block(ctx, l.blob.Index.Ref(0)); err == nil || time.Since(start) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		read := make(chan error)
		go func() {
			_, err := l.Block(context.Background(), l.blob.Index.Ref(0))
			read <- err
		}()
		time.Sleep(time.Second)
		go l.Close()
		wantErr(t, "read on a ladder that closes", <-read, blockfmt.ErrTransient)
		_, err := l.Block(context.Background(), l.blob.Index.Ref(0))
		wantErr(t, "read on a closed ladder", err, blockfmt.ErrTransient)
	})
}

// TestLadderOverPeers: the real thing. A parent that stalls in the middle of a block is left within its deadline, and one that
// dies at once.
func TestLadderOverPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := blocktest.NewBlob(1, 2<<20, 64<<10)
		im := image(t, blob, 1)
		net := newPipes(t)
		backupNode := newNode(t, stream.NodeConfig{})
		share(t, backupNode, stream.ShareConfig{Image: im, Source: blob})
		node := newNode(t, stream.NodeConfig{})
		child := share(t, node, stream.ShareConfig{Image: im})
		other := edge(t, net, backupNode, child, backup)
		stalls, sc := scriptedParent(t, stream.Pipe, child, fed)
		sc.wg.Go(func() {
			for i := range 3 {
				sc.expect(stream.KindWant)
				list := pieces(blob, i, 10_000)
				if i == 2 {
					list = list[:1] // and no more
				}
				sc.send(list...)
			}
			sc.discard()
		})
		var counters stream.Counters
		l := newLadder(t, stream.LadderConfig{Counters: &counters}, rung("parent", stalls), rung("backup", other))
		start := time.Now()
		for i := range im.Len() {
			check(t, l, blob, i)
		}
		between(t, "all reads", time.Since(start), 150*time.Millisecond, 300*time.Millisecond)
		if h, s := counters.Hedges.Load(), counters.Stalls.Load(); h != 1 || s != 1 {
			t.Errorf("%d hedges, %d stalls, want one of each", h, s)
		}
		sc.Close()
		<-stalls.Done()
		start = time.Now()
		check(t, l, blob, 3)
		between(t, "read after the parent's death", time.Since(start), 0, 0)
	})
}
