package placement

import (
	"cmp"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// pointsPerInstance is how many points an instance has on the ring: the more, the more even are their shares.
const pointsPerInstance = 128

// ring is consistent hashing.
type ring struct {
	mu sync.Mutex // held by who changes instances or colours
	fleet
	colours
	points atomic.Pointer[[]point] // by hash
}

type point struct {
	hash  uint64
	owner *member
}

func newRing(cfg Config) *ring { return &ring{colours: newColours(cfg.Colours)} }

// Pick implements Policy.
func (p *ring) Pick(name string) (Instance, bool) {
	if name == "" {
		return p.spread()
	}
	hash := hashOf(name)
	if p.find(hash) == nil && p.mu.TryLock() { // else it is remembered the next time
		p.learn(hash, name, func(colour) {})
		p.mu.Unlock()
	}
	if m := p.owner(hash); m != nil {
		return m.id, true
	}
	return 0, false
}

// owner returns the member at the first point from hash on.
func (p *ring) owner(hash uint64) *member {
	points := p.points.Load()
	if points == nil || len(*points) == 0 {
		return nil
	}
	list := *points
	i := sort.Search(len(list), func(i int) bool { return list[i].hash >= hash })
	return list[i%len(list)].owner
}

// Add implements Policy.
func (p *ring) Add(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.join(id)
	if m == nil {
		return nil
	}
	var list []point
	if old := p.points.Load(); old != nil {
		list = slices.Clone(*old)
	}
	for i := range uint64(pointsPerInstance) {
		list = append(list, point{mix(m.hash + i), m})
	}
	return p.change(list)
}

// Remove implements Policy.
func (p *ring) Remove(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.leave(id)
	if m == nil {
		return nil
	}
	return p.change(slices.DeleteFunc(slices.Clone(*p.points.Load()), func(x point) bool { return x.owner == m }))
}

// change sets the points and says which colours move.
func (p *ring) change(list []point) Moves {
	slices.SortFunc(list, func(a, b point) int { return cmp.Compare(a.hash, b.hash) })
	all := p.all()
	before := make([]*member, len(all))
	for i, e := range all {
		before[i] = p.owner(e.hash)
	}
	p.points.Store(&list)
	moved := moving{}
	for i, e := range all {
		moved.colour(e, before[i], p.owner(e.hash))
	}
	return moved.moves()
}
