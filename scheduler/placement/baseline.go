package placement

import (
	"sync"
	"sync/atomic"
)

// random picks any instance: Palette's first baseline.
type random struct {
	mu   sync.Mutex // held by who changes the instances
	seed uint64
	fleet
}

func newRandom(seed uint64) *random { return &random{seed: mix(seed)} }

// Pick implements Policy.
func (p *random) Pick(string) (Instance, bool) {
	return nth(p.members().list, mix(p.seed+p.ticket.Add(1)))
}

// Add implements Policy.
func (p *random) Add(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.join(id)
	return nil
}

// Remove implements Policy.
func (p *random) Remove(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave(id)
	return nil
}

// roundRobin picks the instances in turn: Palette's second baseline.
type roundRobin struct {
	random
	next atomic.Uint64
}

func newRoundRobin() *roundRobin { return new(roundRobin) }

// Pick implements Policy.
func (p *roundRobin) Pick(string) (Instance, bool) {
	return nth(p.members().list, p.next.Add(1)-1)
}

func nth(list []*member, i uint64) (Instance, bool) {
	if len(list) == 0 {
		return 0, false
	}
	return list[i%uint64(len(list))].id, true
}
