package scheduler

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
)

// session is what a scheduler says to one agent. Whoever has something to say posts it and goes on; the agent's connection takes
// it when it can. Of several positions in one stripe only the last is kept, so a slow agent costs no more memory than it
// has places, and then its session ends.
type session struct {
	id   string
	peer string
	wake chan struct{}
	over chan struct{} // closed when the session is to end

	mu     sync.Mutex
	events []api.Event
	latest map[slot]int // index in events
	bye    string
}

// slot is a place in a stripe of a tree, of whomever it is talked about.
type slot struct {
	image  digest.Digest
	stripe int
}

// maxEvents bounds what waits for a slow agent.
const maxEvents = 10_000

func newSession(peer string) *session {
	return &session{id: random(16), peer: peer, wake: make(chan struct{}, 1), over: make(chan struct{}), latest: map[slot]int{}}
}

// post says something.
func (s *session) post(e api.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bye != "" {
		return
	}
	if p := e.Position; p != nil {
		at := slot{p.Image, p.Stripe}
		if i, waits := s.latest[at]; waits {
			s.events[i] = e
			return
		}
		s.latest[at] = len(s.events)
	}
	if len(s.events) == maxEvents {
		s.finish("it does not read what it is told")
		return
	}
	s.events = append(s.events, e)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end ends the session; the agent is told why if it still listens.
func (s *session) end(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(why)
}

func (s *session) finish(why string) {
	if s.bye == "" {
		s.bye = why
		s.events = append(s.events, api.Event{Bye: why})
		close(s.over)
	}
}

// take returns what was posted.
func (s *session) take() []api.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := s.events
	s.events = nil
	clear(s.latest)
	return events
}
