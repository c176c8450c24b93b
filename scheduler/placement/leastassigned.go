package placement

import (
	"cmp"
	"slices"
	"sync"
)

// leastAssigned gives a colour that is not known to the instance with the fewest colours.
type leastAssigned struct {
	mu sync.Mutex // held by who changes instances or colours
	fleet
	colours
	assigned map[*member]int // how many colours each has
}

func newLeastAssigned(cfg Config) *leastAssigned {
	return &leastAssigned{colours: newColours(cfg.Colours), assigned: map[*member]int{}}
}

// Pick implements Policy.
func (p *leastAssigned) Pick(name string) (Instance, bool) {
	if name == "" {
		return p.spread()
	}
	hash := hashOf(name)
	e := p.find(hash)
	if e == nil {
		e = p.assign(hash, name)
	}
	r := e.route.Load()
	if r == nil {
		return 0, false
	}
	e.hits.Add(1)
	return r.to[0].member.id, true
}

// assign remembers a colour and gives it an owner, if there are instances.
func (p *leastAssigned) assign(hash uint64, name string) *cell {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.learn(hash, name, func(e colour) { p.give(e.cell, nil) })
	if e.route.Load() == nil {
		p.give(e, p.least())
	}
	return e
}

func (p *leastAssigned) least() *member {
	return fewest(p.members().list, 0, func(m *member) int { return p.assigned[m] })
}

// owner returns who has a colour, nil if nobody has.
func (e *cell) owner() *member {
	if r := e.route.Load(); r != nil {
		return r.to[0].member
	}
	return nil
}

// give gives a colour to a member, or to nobody.
func (p *leastAssigned) give(e *cell, to *member) {
	if from := e.owner(); from != nil {
		p.assigned[from]--
	}
	if to == nil {
		e.route.Store(nil)
		return
	}
	p.assigned[to]++
	e.route.Store(to.only)
}

// Add implements Policy: the new instance gets its share of the colours, from whoever has most.
func (p *leastAssigned) Add(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.join(id)
	if m == nil {
		return nil
	}
	list := p.members().list
	all := p.all()
	slices.SortFunc(all, func(a, b colour) int { return cmp.Compare(mix(m.hash^b.hash), mix(m.hash^a.hash)) })
	share := p.n / len(list)
	moved := moving{}
	for _, e := range all {
		from := e.owner()
		if from == nil {
			p.give(e.cell, p.least())
		} else if p.assigned[m] < share && p.assigned[from] > share {
			moved.colour(e, from, m)
			p.give(e.cell, m)
		}
	}
	return moved.moves()
}

// Remove implements Policy.
func (p *leastAssigned) Remove(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.leave(id)
	if m == nil {
		return nil
	}
	moved := moving{}
	for _, e := range p.all() {
		if e.owner() == m {
			heir := p.least()
			moved.colour(e, m, heir)
			p.give(e.cell, heir)
		}
	}
	delete(p.assigned, m)
	return moved.moves()
}
