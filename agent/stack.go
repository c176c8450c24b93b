package agent

import (
	"math"
	"sync"
	"time"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
)

// stacks are the Sources that blocks come through, one for every place they are fetched from:
//
//	Deadline(Coalesced(Cached(disk, Gated(Retry(Verified(Ranged(place)))))))
//
// A place that is away for a while is asked again until the deadline: a container gets its bytes late, or EIO once.
type stacks struct {
	store    blockfmt.Store
	place    func(origin) (place, error)
	requests int           // at a time, to one place
	timeout  time.Duration // of one read

	mu   sync.Mutex
	open map[string]*stack
	stop closers
}

// stack is the way of the blocks of one place.
type stack struct {
	from   place
	gate   *fetch.Gate
	source blockfmt.Source
}

func newStacks(cfg Config, store blockfmt.Store, place func(origin) (place, error)) *stacks {
	return &stacks{store: store, place: place, requests: cfg.Connections, timeout: cfg.ReadTimeout.Duration, open: map[string]*stack{}}
}

// source returns the Source of an origin's blocks.
func (s *stacks) source(o origin) (blockfmt.Source, error) {
	k, err := s.stack(o)
	if err != nil {
		return nil, err
	}
	return k.source, nil
}

// registry returns the Source of an origin's blocks in its place alone, verified, without the cache.
func (s *stacks) registry(o origin) (blockfmt.Source, error) {
	k, err := s.stack(o)
	if err != nil {
		return nil, err
	}
	return k.gate, nil
}

// sweep returns a Sweep that fetches from an origin into the store and gives way to demand reads there.
func (s *stacks) sweep(o origin) (*fetch.Sweep, error) {
	k, err := s.stack(o)
	if err != nil {
		return nil, err
	}
	return fetch.NewSweep(fetch.SweepConfig{Reader: k.from, Store: s.store, Gate: k.gate}), nil
}

func (s *stacks) stack(o origin) (*stack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.open[o.String()]; k != nil {
		return k, nil
	}
	from, err := s.place(o)
	if err != nil {
		return nil, err
	}
	ranged := fetch.Ranged(from, fetch.RangedConfig{Requests: s.requests, Window: time.Millisecond, MinBytes: 4 << 20})
	gate := fetch.Gated(fetch.Retry(fetch.Verified(ranged), fetch.RetryConfig{Attempts: math.MaxInt}))
	coalesced := fetch.Coalesced(fetch.Cached(s.store, gate))
	s.stop.add(ranged.Close)
	s.stop.add(coalesced.Close) // first: it waits for what it asked of ranged
	k := &stack{from, gate, fetch.Deadline(coalesced, s.timeout)}
	s.open[o.String()] = k
	return k, nil
}

// close ends all fetches that are under way.
func (s *stacks) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop := s.stop
	s.open, s.stop = map[string]*stack{}, nil
	return stop.close()
}
