package agent

import (
	"sync"
	"time"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
)

// stacks are the Sources that blocks come through, one for every place they are fetched from:
//
//	Deadline(Coalesced(Cached(disk, Retry(Verified(Ranged(place))))))
type stacks struct {
	store    blockfmt.Store
	place    func(origin) (place, error)
	requests int           // at a time, to one place
	timeout  time.Duration // of one read

	mu   sync.Mutex
	open map[string]blockfmt.Source
	stop closers
}

func newStacks(cfg Config, store blockfmt.Store, place func(origin) (place, error)) *stacks {
	return &stacks{store: store, place: place, requests: cfg.Connections, timeout: cfg.ReadTimeout.Duration, open: map[string]blockfmt.Source{}}
}

// source returns the Source of an origin's blocks.
func (s *stacks) source(o origin) (blockfmt.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src := s.open[o.String()]; src != nil {
		return src, nil
	}
	from, err := s.place(o)
	if err != nil {
		return nil, err
	}
	ranged := fetch.Ranged(from, fetch.RangedConfig{Requests: s.requests, Window: time.Millisecond, MinBytes: 4 << 20})
	remote := fetch.Retry(fetch.Verified(ranged), fetch.RetryConfig{})
	coalesced := fetch.Coalesced(fetch.Cached(s.store, remote))
	s.stop.add(ranged.Close)
	s.stop.add(coalesced.Close) // first: it waits for what it asked of ranged
	src := fetch.Deadline(coalesced, s.timeout)
	s.open[o.String()] = src
	return src, nil
}

// close ends all fetches that are under way.
func (s *stacks) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stop := s.stop
	s.open, s.stop = map[string]blockfmt.Source{}, nil
	return stop.close()
}
