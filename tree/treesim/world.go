package treesim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// world is all that a simulation consists of.
type world struct {
	cfg      Config
	net      *Network
	content  *content
	registry *registry
	owner    *owner // on Network.Run's goroutine only
	agents   []*agent
	byID     map[stream.PeerID]*agent
	order    []int // in which blocks are pushed
	ahead    int   // how many of them roots fetch unasked
	lies     bool  // some agent will break the protocol
	wg       sync.WaitGroup
	moved    chan struct{} // the work may be done

	mu      sync.Mutex
	began   time.Duration // when the work did
	pending int           // faults that are not over
	ending  bool
	errs    []error
	events  []Event
	reads   Histogram
	misses  Histogram
	spans   []Span
	below   []stream.PeerID
	failed  int // reads that should not have
	wrong   int // blocks
	ready   []time.Duration
	counts  Counts
}

// errLimit says that a simulation took too long.
var errLimit = errors.New("treesim: the work is not done within the limit")

// Simulate runs a simulation to its end. It must be called in a bubble of testing/synctest.
func Simulate(ctx context.Context, cfg Config) (*Report, error) {
	w, err := newWorld(cfg)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeoutCause(ctx, w.cfg.Limit, errLimit)
	defer stop()
	netCtx, end := context.WithCancel(context.Background())
	var net sync.WaitGroup
	net.Go(func() { w.net.Run(netCtx) })
	err = w.play(ctx)
	w.close()
	end()
	net.Wait()
	return w.report(), errors.Join(append(w.errs, err)...)
}

func newWorld(cfg Config) (*world, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	w := &world{cfg: cfg, net: NewNetwork(cfg.Network), byID: map[stream.PeerID]*agent{}, moved: make(chan struct{}, 1)}
	if w.content, err = newContent(cfg.Blocks, cfg.BlockSize, cfg.Stripes); err != nil {
		return nil, err
	}
	if w.owner, err = newOwner(w); err != nil {
		return nil, err
	}
	w.lies = slices.ContainsFunc(cfg.Faults, func(f Fault) bool { return f.Kind.lies() })
	w.registry = &registry{net: w.net, content: w.content, link: cfg.Registry, latency: cfg.Latency, opens: make(chan struct{}), log: w.log, asked: map[int]int{}}
	w.registry.open()
	w.net.Add(ownerID, Link{}, func(stream.Conn, stream.PeerID) {})
	for i := range cfg.Blocks {
		w.order = append(w.order, i)
	}
	switch {
	case cfg.Programs.Count == 0:
		w.ahead = cfg.Blocks
	case !cfg.Programs.Unrecorded:
		w.ahead = cfg.Programs.Reads
	}
	for i := range cfg.Agents {
		a := &agent{world: w, id: stream.PeerID(fmt.Sprintf("agent-%04d", i)), number: i + 1, link: cfg.Link}
		if link, ok := cfg.Links[i]; ok {
			a.link = link
		}
		a.store = newStore(w.content, a.added)
		w.net.Add(a.id, a.link, nil) // nothing runs there yet
		w.agents = append(w.agents, a)
		w.byID[a.id] = a
	}
	return w, nil
}

// play has the agents join and does the work, with all that goes wrong meanwhile.
func (w *world) play(ctx context.Context) error {
	w.net.After(watchEvery, 0, w.owner.watch)
	rng := rand.New(rand.NewPCG(w.cfg.Seed, 0xa9))
	for i, at := range rng.Perm(len(w.agents)) {
		a := w.agents[at]
		w.open(+1)
		w.net.After(w.cfg.Arrive*time.Duration(i)/time.Duration(len(w.agents)), uint64(a.number), func() {
			if err := a.start(); err != nil {
				w.fail(err)
			}
			w.open(-1)
		})
	}
	if w.cfg.Settled && !sleep(ctx, settling) {
		return context.Cause(ctx)
	}
	w.begin()
	return w.work(ctx, rng)
}

// settling is how long a tree gets until the registry begins to answer.
const settling = 2 * time.Second

func (w *world) begin() {
	close(w.registry.opens)
	w.mu.Lock()
	w.began = w.net.Now()
	w.mu.Unlock()
	for _, f := range w.cfg.Faults {
		w.schedule(f)
	}
}

// work waits until all is done.
func (w *world) work(ctx context.Context, rng *rand.Rand) error {
	w.launch(ctx, rng)
	for !w.done() {
		select {
		case <-w.moved:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), w.lacking())
		}
	}
	return nil
}

// done says whether the work is.
func (w *world) done() bool {
	w.mu.Lock()
	pending, ready := w.pending, len(w.ready)
	w.mu.Unlock()
	if pending > 0 {
		return false
	}
	if n := w.cfg.Programs.Count; n > 0 {
		return ready == n
	}
	return !slices.ContainsFunc(w.agents, w.lacks)
}

// lacks says whether an agent should get blocks that it does not have. Who lies about its place is not fed.
func (w *world) lacks(a *agent) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.run != nil && a.lie.Load() == nil && a.store.len() < w.cfg.Blocks
}

// lacking says what is not done.
func (w *world) lacking() string {
	for _, a := range w.agents {
		if n := a.store.len(); w.cfg.Programs.Count == 0 && w.lacks(a) {
			p := a.process()
			return fmt.Sprintf("%s has %d blocks of %d, %v from %q, epochs %d", a.id, n, w.cfg.Blocks, p.member.Held(), p.member.Parents(), p.member.Epochs())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d faults are not over, %d programs of %d have started", w.pending, len(w.ready), w.cfg.Programs.Count)
}

// close ends all agents, and waits for all that they do.
func (w *world) close() {
	w.mu.Lock()
	w.ending = true
	w.mu.Unlock()
	for _, a := range w.agents {
		a.mu.Lock()
		p := a.run
		a.run = nil
		a.mu.Unlock()
		if p != nil {
			w.counts.count(p.node.Counters())
			w.wg.Go(p.close)
		}
	}
	w.wg.Wait()
}

// open counts what must be over before the work can be done.
func (w *world) open(n int) {
	w.mu.Lock()
	w.pending += n
	w.mu.Unlock()
	w.progress()
}

// progress has done looked at.
func (w *world) progress() { signal(w.moved) }

// fail notes an error that no simulation should have.
func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// toOwner sends a message to the tree's owner.
func (w *world) toOwner(a *agent, f func(*owner)) {
	if !w.net.Reaches(a.id, ownerID) {
		return
	}
	w.net.After(w.net.cfg.Delay, uint64(a.number), func() { f(w.owner) })
}

// tell sends a position to an agent.
func (w *world) tell(to stream.PeerID, at member.Position) {
	a := w.byID[to]
	w.net.After(w.net.cfg.Delay, uint64(a.number), func() {
		p := a.process()
		if p == nil || !w.net.Reaches(ownerID, a.id) {
			return
		}
		if err := p.member.Place(at); err != nil {
			w.fail(err)
		}
	})
}
