package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// A Rung is a candidate of a Ladder.
type Rung struct {
	Name   string // by which its record is kept when the rungs change
	Source blockfmt.Source
	// Origin marks the registry, which is asked when all others failed, or stall and its own small budget allows it.
	Origin bool
	// After is how long a read must have been under way before this rung is asked, so that a tree has the time to repair
	// itself before the registry feels it. Default 0.
	After time.Duration
}

// LadderConfig of a Ladder. The zero value is good.
type LadderConfig struct {
	// Floor and Ceiling bound the time without progress after which the next candidate is asked as well; in between it is
	// what the candidate's latest blocks took, and four times their deviation. Default 150 ms, because queues on the way
	// hold up a block for 100 ms, and 900 ms.
	Floor, Ceiling time.Duration
	// Hedges and OriginHedges are how many requests in addition to one for each block may go to peers and to the origin,
	// per block. Default 0.05 and 0.01.
	Hedges, OriginHedges float64
	// Burst is how many additional requests may come at once. Default 4.
	Burst float64
	// PutBack is how long a candidate that stalled or failed is asked after the others; twice as long each time, up to
	// 16 times. Default 1 s.
	PutBack time.Duration
	// Verify judges blocks of sources that are not verified. Default blockfmt.Verify.
	Verify func(blockfmt.Ref, []byte) error
	// Counters count. Default: nobody looks.
	Counters *Counters
}

func (c LadderConfig) withDefaults() LadderConfig {
	setDefault(&c.Floor, 150*time.Millisecond)
	setDefault(&c.Ceiling, 900*time.Millisecond)
	setDefault(&c.Hedges, 0.05)
	setDefault(&c.OriginHedges, 0.01)
	setDefault(&c.Burst, 4)
	setDefault(&c.PutBack, time.Second)
	setDefault(&c.Counters, new(Counters))
	if c.Verify == nil {
		c.Verify = blockfmt.Verify
	}
	return c
}

// A Ladder is a blockfmt.Source of verified blocks over candidates in order: parent, backup, cross-stripe peer, registry.
// A candidate that fails is left at once. One that makes no progress goes on while the next is asked as well; the first
// right answer wins, and the others are canceled.
type Ladder struct {
	cfg    LadderConfig
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	rungs   []Rung
	changed chan struct{} // closed when rungs change
	records map[string]*record
	peers   budget
	origin  budget
}

// NewLadder returns a Ladder without rungs. Close it when done.
func NewLadder(cfg LadderConfig) *Ladder {
	cfg = cfg.withDefaults()
	l := &Ladder{cfg: cfg, changed: make(chan struct{}), records: map[string]*record{},
		peers: newBudget(cfg.Hedges, cfg.Burst), origin: newBudget(cfg.OriginHedges, 1)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Close cancels what is under way and waits for it.
func (l *Ladder) Close() error {
	l.mu.Lock()
	l.cancel() // under mu: no request begins afterwards
	l.mu.Unlock()
	l.wg.Wait()
	return nil
}

// Set changes the candidates. Reads under way go on where they are, and look at the new ones when they look further.
func (l *Ladder) Set(rungs ...Rung) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rungs = slices.Clone(rungs)
	for name := range l.records {
		if !slices.ContainsFunc(rungs, func(r Rung) bool { return r.Name == name }) {
			delete(l.records, name)
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Verified implements blockfmt.VerifiedSource.
func (l *Ladder) Verified() bool { return true }

func (l *Ladder) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%v: %w", ref, context.Cause(ctx))
	}
	l.mu.Lock()
	l.peers.add()
	l.origin.add()
	l.mu.Unlock()
	c := &climb{ladder: l, ref: ref, start: time.Now(), answers: make(chan answer)}
	c.ctx, c.stop = context.WithCancel(ctx)
	defer c.stop()
	defer context.AfterFunc(l.ctx, c.stop)()
	return c.run(ctx)
}

// climb is one read on its way up the ladder.
type climb struct {
	ladder  *Ladder
	ref     blockfmt.Ref
	ctx     context.Context // of all requests
	stop    context.CancelFunc
	start   time.Time
	answers chan answer
	tried   []string
	running []*request
	failed  error
}

// request is a candidate that was asked and has not answered.
type request struct {
	rung   Rung
	begun  time.Time
	hedge  bool
	silent bool // was put back already
}

type answer struct {
	*request
	stored []byte
	err    error
}

func (c *climb) run(ctx context.Context) ([]byte, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, changed, ok := c.look()
		if !ok {
			return nil, c.error()
		}
		timer.Reset(wait)
		select {
		case a := <-c.answers:
			c.running = without(c.running, a.request)
			if a.err == nil {
				return a.stored, nil
			}
			c.note(a)
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%v: %w", c.ref, context.Cause(ctx))
		}
	}
}

// look asks the next candidate if it is time to, and says when to look again; false if there is nobody left.
func (c *climb) look() (wait time.Duration, changed <-chan struct{}, ok bool) {
	l := c.ladder
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	next, due := l.next(c, now)
	stalled, lost, wait := true, true, time.Hour
	for _, r := range c.running {
		s, dead, w := l.judge(c, r, now)
		stalled, lost, wait = stalled && s, lost && dead, min(wait, w)
	}
	switch {
	case l.ctx.Err() != nil:
		c.failed = fmt.Errorf("%v: ladder is closed: %w", c.ref, blockfmt.ErrTransient)
		return 0, nil, false
	case next == nil:
		return wait, l.changed, len(c.running) > 0
	case now.Before(due):
		return min(wait, due.Sub(now)), l.changed, true
	case len(c.running) == 0, stalled && (lost || l.afford(*next)):
		l.ask(c, *next, now)
		return 0, l.changed, true
	}
	return wait, l.changed, true
}

// next returns the best candidate that was not tried, and when it may be asked; mu is held.
func (l *Ladder) next(c *climb, now time.Time) (*Rung, time.Time) {
	var best *Rung
	bestRank := 0
	for i := range l.rungs {
		r := &l.rungs[i]
		if slices.Contains(c.tried, r.Name) {
			continue
		}
		if rank := l.rank(*r, c, now); best == nil || rank < bestRank {
			best, bestRank = r, rank
		}
	}
	if best == nil {
		return nil, time.Time{}
	}
	return best, c.start.Add(best.After)
}

// rank says how late a candidate's turn is: the origin is last, then those that are put back, then those of which it is
// known that they do not have the block; the first one is asked whether it has it or not, because it will.
func (l *Ladder) rank(r Rung, c *climb, now time.Time) int {
	rank := 0
	if r.Origin {
		rank += 4
	}
	if l.record(r.Name).back.After(now) {
		rank += 2
	}
	if h, ok := r.Source.(interface{ Has(blockfmt.Ref) bool }); ok && len(c.tried) > 0 && !h.Has(c.ref) {
		rank++
	}
	return rank
}

func (l *Ladder) record(name string) *record {
	r := l.records[name]
	if r == nil {
		r = new(record)
		l.records[name] = r
	}
	return r
}

// afford takes the right to ask a candidate while others are asked; mu is held.
func (l *Ladder) afford(r Rung) bool {
	if r.Origin {
		return l.origin.take()
	}
	return l.peers.take()
}

// A progressor is what a Source may be as well: one that tells how a read gets on.
type progressor interface {
	Progress(ref blockfmt.Ref) Progress
}

// Progress says when something came last; zero if nothing did.
type Progress struct {
	Block time.Time // of this block
	Asked time.Time // of any block that was asked for: the others' turn
	Heard time.Time // of anything
}

// judge says whether a candidate makes no progress, whether it must be taken for dead, and when to ask again; mu is held.
// A read in the background is not late as long as the candidate is alive.
func (l *Ladder) judge(c *climb, r *request, now time.Time) (stalled, dead bool, wait time.Duration) {
	patience := l.record(r.rung.Name).patience(l.cfg.Floor, l.cfg.Ceiling)
	var p Progress
	if s, ok := r.rung.Source.(progressor); ok {
		p = s.Progress(c.ref)
	}
	block, asked, heard := now.Sub(latest(r.begun, p.Block)), now.Sub(latest(r.begun, p.Block, p.Asked)), now.Sub(latest(r.begun, p.Block, p.Asked, p.Heard))
	if heard >= patience && !r.silent {
		r.silent = true
		l.cfg.Counters.Stalls.Add(1)
		l.record(r.rung.Name).putBack(now, l.cfg.PutBack)
	}
	if !blockfmt.IsDemand(c.ctx) {
		asked, block = heard, heard
	}
	stalled = asked >= patience || block >= l.cfg.Ceiling
	dead = heard >= l.cfg.Ceiling
	for _, left := range []time.Duration{patience - asked, patience - heard, l.cfg.Ceiling - block, l.cfg.Ceiling - heard} {
		if left > 0 && (wait == 0 || left < wait) {
			wait = left
		}
	}
	if wait == 0 {
		wait = patience // what was not affordable may be
	}
	return stalled, dead, wait
}

func latest(t time.Time, others ...time.Time) time.Time {
	for _, o := range others {
		if o.After(t) {
			t = o
		}
	}
	return t
}

// ask begins a request; mu is held.
func (l *Ladder) ask(c *climb, rung Rung, now time.Time) {
	r := &request{rung: rung, begun: now, hedge: len(c.running) > 0}
	c.tried = append(c.tried, rung.Name)
	c.running = append(c.running, r)
	if r.hedge {
		l.cfg.Counters.Hedges.Add(1)
	}
	l.wg.Go(func() {
		stored, err := rung.Source.Block(c.ctx, c.ref)
		if err == nil && !blockfmt.IsVerified(rung.Source) {
			err = l.cfg.Verify(c.ref, stored)
		}
		if err == nil {
			l.succeeded(r)
		}
		select {
		case c.answers <- answer{r, stored, err}:
		case <-c.ctx.Done():
		}
	})
}

func (l *Ladder) succeeded(r *request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record(r.rung.Name).measure(time.Since(r.begun))
	if r.hedge {
		l.cfg.Counters.HedgesWon.Add(1)
	}
}

// note remembers a failure.
func (c *climb) note(a answer) {
	l := c.ladder
	l.mu.Lock()
	if !errors.Is(a.err, blockfmt.ErrNotFound) {
		l.record(a.rung.Name).putBack(time.Now(), l.cfg.PutBack)
	}
	l.mu.Unlock()
	switch {
	case c.failed == nil:
		c.failed = a.err
	case errors.Is(c.failed, blockfmt.ErrTransient) && !errors.Is(a.err, blockfmt.ErrTransient):
		c.failed = fmt.Errorf("%w; then %v", c.failed, a.err)
	default:
		c.failed = fmt.Errorf("%w; before that %v", a.err, c.failed)
	}
}

func (c *climb) error() error {
	if c.failed == nil {
		return fmt.Errorf("%v: nobody to ask: %w", c.ref, blockfmt.ErrTransient)
	}
	return c.failed
}
