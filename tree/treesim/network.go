package treesim

import (
	"cmp"
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/xylem-project/xylem/tree/stream"
)

// NetworkConfig of a Network. The zero value is a fast network without losses.
type NetworkConfig struct {
	// Delay is the time from any host to any other, beside that of the links. Default 0.25 ms.
	Delay time.Duration
	// Tick is how often the network looks: what arrives in between is handed over together, which keeps runs short and
	// independent of the order of goroutines. Links are reckoned exactly. Default 20.011 µs, so that no timer of the agents
	// goes off with it.
	Tick time.Duration
	// Segment is how many bytes of a message a link sends before it is the turn of another edge. Default 64 KiB.
	Segment int
	// FIFO says that links send messages in the order in which they were handed over, as plain queues do. Default: edges take
	// turns, and small messages go first.
	FIFO bool
	// Queue is how many bytes may wait in front of a downlink; senders to it hold back the rest. Default 256 KiB.
	Queue int
	// Buffer is how many bytes a sender hands over before Send blocks; one message always has room. Default 64 KiB.
	Buffer int
	// Window is how many bytes an edge takes ahead of its reader. Default 16 MiB, as stream.HostConfig.
	Window int
	// Loss is the part of segments that is lost and comes a Timeout later, with all that follows it on its edge. Default 0.
	Loss float64
	// Timeout of a retransmission. Default 200 ms.
	Timeout time.Duration
	// DialTimeout is when an attempt to reach a host that does not answer is given up. Default 5 s.
	DialTimeout time.Duration
	// Seed decides which segments are lost.
	Seed uint64
}

func (c NetworkConfig) withDefaults() NetworkConfig {
	c.Delay = cmp.Or(c.Delay, 250*time.Microsecond)
	c.Tick = cmp.Or(c.Tick, 20011*time.Nanosecond)
	c.Segment = cmp.Or(c.Segment, 64<<10)
	c.Queue = cmp.Or(c.Queue, 256<<10)
	c.Buffer = cmp.Or(c.Buffer, 64<<10)
	c.Window = cmp.Or(c.Window, 16<<20)
	c.Timeout = cmp.Or(c.Timeout, 200*time.Millisecond)
	c.DialTimeout = cmp.Or(c.DialTimeout, 5*time.Second)
	return c
}

// A Network carries messages between hosts on virtual time. One goroutine, Run's, decides when everything arrives.
type Network struct {
	cfg   NetworkConfig
	start time.Time
	wake  chan struct{}  // there is something earlier to do than Run knows
	wg    sync.WaitGroup // of what serves edges

	mu     sync.Mutex
	events events
	issued uint64 // events ever
	hosts  map[stream.PeerID]*host
	order  []*host
	fresh  []*flow // that something was sent on since the last tick
	split  bool    // hosts of different sides do not reach each other
}

// NewNetwork returns a network without hosts. It does nothing before Run.
func NewNetwork(cfg NetworkConfig) *Network {
	return &Network{cfg: cfg.withDefaults(), start: time.Now(), wake: make(chan struct{}, 1), hosts: map[stream.PeerID]*host{}}
}

// An event is something that happens at a time.
type event struct {
	at    time.Duration // since the start
	key   uint64        // orders what happens at one time
	issue uint64
	what  happening
}

// A happening changes the network; its mu is held.
type happening interface{ happen(now time.Duration) }

// call is a happening outside of the network: mu is not held.
type call func()

func (call) happen(time.Duration) {}

type events []event

func (e events) Len() int      { return len(e) }
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e events) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), cmp.Compare(e[i].key, e[j].key), cmp.Compare(e[i].issue, e[j].issue)) < 0
}
func (e *events) Push(x any) { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*e = old[:len(old)-1]
	return last
}

// Now returns the time since the network was made.
func (n *Network) Now() time.Duration { return time.Since(n.start) }

// After has f called when d has passed, by Run. What is to happen at one time happens in the order of key. f must not block.
func (n *Network) After(d time.Duration, key uint64, f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at(n.Now()+d, key, call(f))
}

// at plans an event; mu is held.
func (n *Network) at(t time.Duration, key uint64, what happening) {
	n.issued++
	earlier := len(n.events) == 0 || t < n.events[0].at
	heap.Push(&n.events, event{t, key, n.issued, what})
	if earlier {
		n.look()
	}
}

// look has Run look at what is to do.
func (n *Network) look() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run carries messages until ctx ends. It breaks all edges then, and waits for those who serve them.
func (n *Network) Run(ctx context.Context) {
	defer n.wg.Wait()
	defer n.breakAll()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var next time.Duration
	planned := false
	for ctx.Err() == nil {
		now := n.Now()
		if planned && now >= next {
			for _, f := range n.due(now) {
				f()
			}
		}
		if next, planned = n.next(now); planned {
			timer.Reset(next - now)
		}
		select {
		case <-timer.C:
		case <-n.wake:
		case <-ctx.Done():
		}
	}
}

// next returns the tick at which there is something to do after now; false if nothing is planned.
func (n *Network) next(now time.Duration) (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	tick := now - now%n.cfg.Tick + n.cfg.Tick
	switch {
	case len(n.fresh) > 0:
		return tick, true
	case len(n.events) == 0:
		return 0, false
	}
	at := n.events[0].at
	return max(tick, at+(n.cfg.Tick-at%n.cfg.Tick)%n.cfg.Tick), true
}

// due lets happen what is due, and returns the calls among it.
func (n *Network) due(now time.Duration) (calls []call) {
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.SortFunc(n.fresh, func(a, b *flow) int { return cmp.Compare(a.key, b.key) })
	for _, f := range n.fresh {
		f.fresh = false
		f.kick()
	}
	for _, f := range n.fresh {
		f.from.serve(now)
	}
	n.fresh = n.fresh[:0]
	for len(n.events) > 0 && n.events[0].at <= now {
		e := heap.Pop(&n.events).(event)
		if f, ok := e.what.(call); ok {
			calls = append(calls, f)
			continue
		}
		e.what.happen(now)
	}
	return calls
}
