package invoke

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/placement"
)

const (
	// patience is how long an invocation with a colour waits for the instances that its policy names, before any other will do.
	patience = 10 * time.Millisecond
	// growAfter is how long an invocation waits for instances that run, before another is started.
	growAfter = 20 * time.Millisecond
	// lookAhead bounds the waiting invocations among which a free instance looks for one that wants it.
	lookAhead = 64
)

// pool is the instances of a version of a function, and what waits for them.
type pool struct {
	d      *Dispatcher
	fn     api.Function
	policy placement.Policy

	mu        sync.Mutex
	instances map[placement.Instance]*instance
	next      placement.Instance // number of the next instance
	idle      []*instance        // those with free places, the last used last
	waiting   []*waiter
	starting  int
	timer     *time.Timer // looks after what waits; nil: not set
	failures  int         // starts that failed, one after the other
	backoff   *BackoffError
	crowded   time.Time // until then no node is asked again for room
	closed    bool
	candidate []placement.Instance // scratch
}

// instance is a running copy of the function.
type instance struct {
	number   placement.Instance
	id       string
	node     *fleet.Node
	inFlight int
	used     time.Time // last
	gone     bool
}

// waiter is an invocation that waits for an instance.
type waiter struct {
	since      time.Time
	candidates []placement.Instance // nil: any
	got        chan granted         // of size 1
}

type granted struct {
	instance *instance
	err      error
}

func newPool(d *Dispatcher, fn api.Function, policy placement.Policy) *pool {
	return &pool{d: d, fn: fn, policy: policy, instances: map[placement.Instance]*instance{}}
}

// take waits for a place in an instance. Call give when the invocation is over.
func (p *pool) take(ctx context.Context, colour string) (*instance, error) {
	p.mu.Lock()
	if err := p.refuses(); err != nil {
		p.mu.Unlock()
		return nil, err
	}
	candidates := p.candidates(colour)
	if i := p.free(candidates); i != nil {
		if candidates != nil && i.number != candidates[0] {
			p.d.metrics.spilled.Inc()
		}
		p.occupy(i)
		p.mu.Unlock()
		return i, nil
	}
	if len(p.waiting) >= p.d.cfg.Queue {
		p.mu.Unlock()
		return nil, ErrOverload
	}
	w := &waiter{since: time.Now(), candidates: slices.Clone(candidates), got: make(chan granted, 1)}
	p.waiting = append(p.waiting, w)
	p.tend()
	p.mu.Unlock()
	select {
	case g := <-w.got:
		p.d.metrics.waits.Observe(time.Since(w.since).Seconds())
		return g.instance, g.err
	case <-ctx.Done():
		p.abandon(w)
		return nil, context.Cause(ctx)
	}
}

// refuses returns why no invocation can wait here.
func (p *pool) refuses() error {
	switch {
	case p.closed:
		return ErrClosed
	case p.backoff != nil && len(p.instances) == 0 && time.Now().Before(p.backoff.Until):
		return p.backoff
	}
	return nil
}

// candidates returns the instances for a colour, the best first; nil for any. It is valid until the next call.
func (p *pool) candidates(colour string) []placement.Instance {
	if colour == "" || len(p.instances) == 0 {
		return nil
	}
	if l, ok := p.policy.(placement.Lister); ok {
		p.candidate = l.Candidates(colour, p.candidate[:0])
		return p.candidate
	}
	if i, ok := p.policy.Pick(colour); ok {
		p.candidate = append(p.candidate[:0], i)
		return p.candidate
	}
	return nil
}

// free returns an instance with a free place, nil if there is none.
func (p *pool) free(candidates []placement.Instance) *instance {
	if candidates == nil {
		if len(p.idle) == 0 {
			return nil
		}
		return p.idle[len(p.idle)-1]
	}
	for _, number := range candidates {
		if i := p.instances[number]; i != nil && i.inFlight < p.fn.Concurrency {
			return i
		}
	}
	return nil
}

// occupy takes a place of an instance that has one.
func (p *pool) occupy(i *instance) {
	i.inFlight++
	if i.inFlight == p.fn.Concurrency {
		p.idle = remove(p.idle, i)
	}
	if l, ok := p.policy.(placement.LoadAware); ok {
		l.Assigned(i.number)
	}
}

// remove takes an element out of a list, looking from its end.
func remove[T comparable](list []T, x T) []T {
	for at := len(list) - 1; at >= 0; at-- {
		if list[at] == x {
			return slices.Delete(list, at, at+1)
		}
	}
	return list
}

// give gives a place back: to whoever waits for it, or for the next.
func (p *pool) give(i *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l, ok := p.policy.(placement.LoadAware); ok {
		l.Done(i.number)
	}
	i.inFlight--
	i.used = time.Now()
	if i.gone {
		return
	}
	if i.inFlight == p.fn.Concurrency-1 {
		p.idle = append(p.idle, i)
	}
	p.serve(i)
}

// serve gives the free places of an instance to those who wait.
func (p *pool) serve(i *instance) {
	for i.inFlight < p.fn.Concurrency {
		at := p.wants(i)
		if at < 0 {
			return
		}
		w := p.waiting[at]
		p.waiting = slices.Delete(p.waiting, at, at+1)
		p.occupy(i)
		w.got <- granted{instance: i}
	}
}

// wants returns who of those that wait longest may have an instance, -1 if nobody.
func (p *pool) wants(i *instance) int {
	for at, w := range p.waiting[:min(len(p.waiting), lookAhead)] {
		if w.candidates == nil || slices.Contains(w.candidates, i.number) || time.Since(w.since) >= patience {
			return at
		}
	}
	return -1
}

// abandon takes out who does not wait any more.
func (p *pool) abandon(w *waiter) {
	p.mu.Lock()
	p.waiting = remove(p.waiting, w)
	p.mu.Unlock()
	select {
	case g := <-w.got: // at the same moment
		if g.instance != nil {
			p.give(g.instance)
		}
	default:
	}
}

// tend looks after those who wait, now or when the first has waited long enough. Callers hold mu.
func (p *pool) tend() {
	if len(p.waiting) == 0 || p.closed {
		return
	}
	if len(p.instances) == 0 || time.Since(p.waiting[0].since) >= growAfter {
		p.grow()
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(patience, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.timer = nil
			for _, i := range slices.Clone(p.idle) {
				p.serve(i)
			}
			p.tend()
		})
	}
}

// grow starts the instances that those who wait need, as far as the function may have them. Callers hold mu.
func (p *pool) grow() {
	need := (len(p.waiting) + p.fn.Concurrency - 1) / p.fn.Concurrency
	p.startUpTo(min(need-p.starting, p.fn.Max-p.starting-len(p.instances)))
}

// startUpTo starts that many instances. Callers hold mu.
func (p *pool) startUpTo(n int) {
	now := time.Now()
	if p.closed || now.Before(p.crowded) || p.backoff != nil && now.Before(p.backoff.Until) {
		return
	}
	for range n {
		p.starting++
		if !p.d.do(p.start) {
			p.starting--
		}
	}
}
