package agent

import (
	"errors"
	"sync"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
)

// stacks are the Sources that blocks come through, one for every place they are fetched from:
//
//	Coalesced(Cached(disk, Verified(place)))
type stacks struct {
	store blockfmt.Store
	place func(origin) (place, error)
	build func(place) (blockfmt.Source, func() error)

	mu   sync.Mutex
	open map[string]blockfmt.Source
	stop closers
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
	remote, stop := s.build(from)
	coalesced := fetch.Coalesced(fetch.Cached(s.store, fetch.Verified(remote)))
	s.stop.add(stop)
	s.stop.add(coalesced.Close)
	s.open[o.String()] = coalesced
	return coalesced, nil
}

// close ends all fetches that are under way.
func (s *stacks) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.stop.close()
	s.open, s.stop = map[string]blockfmt.Source{}, nil
	return errors.Join(err)
}
