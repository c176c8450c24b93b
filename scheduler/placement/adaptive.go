package placement

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// adaptive is hash slots whose owners follow measured load.
//
//   - Every Pick counts for its colour. Rebalance turns the counts into heat, which fades.
//   - Colours that are hot enough leave their slots and get an entry of their own (a route), the rest stays with its slot.
//   - Rebalance evens the load: it moves slots and routes from instances that have more than their share. A colour that is hotter than
//     a share gets an instance of its own.
//   - If it is known how many colours an instance keeps warm, the hottest that fit into some of the instances are there by themselves, so that
//     what is picked once does not flush from a cache what is picked often.
//   - With a load bound, a colour that is hotter than a share is on several instances, and an invocation that finds its instance
//     at the bound goes to the next of a short list in rendezvous order.
//
// Heat is a count, and so is never exact: nothing moves for a difference that may be chance. See docs/decisions/placement.md.
type adaptive struct {
	mu sync.Mutex // held by who changes instances, slots or colours
	fleet
	colours
	slots   slotTable
	met     int     // colours since the last Rebalance; under mu
	newness float64 // their heat; under mu
	tier    int     // how many members are for hot colours; under mu
	warm    int
	lists   [Slots]atomic.Pointer[spill]
	bound   float64
	spillTo int
}

// spill is where a slot's invocations may go, the highest rank first.
type spill struct {
	of *view // for which it was made
	to []*member
}

func newAdaptive(cfg Config) *adaptive {
	return &adaptive{colours: newColours(cfg.Colours), bound: cfg.LoadBound, spillTo: cfg.Spill, warm: cfg.Warm}
}

// Pick implements Policy.
func (p *adaptive) Pick(name string) (Instance, bool) {
	if name == "" {
		return p.spread()
	}
	hash := hashOf(name)
	m := p.owner(hash, name)
	if m == nil {
		return 0, false
	}
	if p.bound > 0 && m.load.Load() >= p.limit() {
		m = p.other(hash, m)
	}
	return m.id, true
}

// owner counts a pick, and returns the colour's member.
func (p *adaptive) owner(hash uint64, name string) *member {
	e := p.find(hash)
	if e == nil {
		e = p.meet(hash, name)
	}
	if e != nil {
		n := e.hits.Add(1)
		if r := e.route.Load(); r != nil {
			return r.pick(n)
		}
	}
	return p.slots[slotOf(hash)].Load()
}

// meet remembers a new colour, unless somebody is just changing the policy: then it is remembered the next time.
func (p *adaptive) meet(hash uint64, name string) *cell {
	if !p.mu.TryLock() {
		return nil
	}
	defer p.mu.Unlock()
	p.met++
	return p.learn(hash, name, func(colour) {})
}

// pick spreads the picks of a route over its shares evenly at all times, not only on average: the multiples of the golden ratio, of which n is one,
// fill the interval from 0 to 1 like that.
func (r *route) pick(n uint32) *member {
	if len(r.to) > 1 {
		x := float64(n*2654435769) / (1 << 32)
		for _, s := range r.to {
			if x < s.until {
				return s.member
			}
		}
	}
	return r.to[len(r.to)-1].member
}

// limit is the load that no instance may reach by another invocation.
func (p *adaptive) limit() int64 {
	return int64(math.Ceil(p.bound * float64(p.total.Load()+1) / float64(max(1, len(p.members().list)))))
}

// other returns a member below the bound: of the colour's candidates the first, else any.
func (p *adaptive) other(hash uint64, full *member) *member {
	v, limit := p.members(), p.limit()
	var few [maxSpill]*member
	for _, m := range p.candidates(v, hash, few[:0]) {
		if m.load.Load() < limit {
			return m
		}
	}
	least := full
	for i := range uint64(len(v.list)) {
		m := v.list[(hash+i)%uint64(len(v.list))]
		if l := m.load.Load(); l < limit {
			return m
		} else if l < least.load.Load() {
			least = m
		}
	}
	return least
}

// candidates appends to an empty list the owners of a colour, and then as many of its slot's list as may share it with them.
func (p *adaptive) candidates(v *view, hash uint64, to []*member) []*member {
	if e := p.find(hash); e != nil {
		if r := e.route.Load(); r != nil {
			for _, s := range r.to {
				to = append(to, s.member)
			}
		}
	}
	if m := p.slots[slotOf(hash)].Load(); len(to) == 0 && m != nil {
		to = append(to, m)
	}
	for _, m := range p.list(v, slotOf(hash)) {
		if len(to) < p.spillTo && !slices.Contains(to, m) {
			to = append(to, m)
		}
	}
	return to
}

// list returns a slot's spill list for these members.
func (p *adaptive) list(v *view, s Slot) []*member {
	if l := p.lists[s].Load(); l != nil && l.of == v {
		return l.to
	}
	to := highest(v.list, s, p.spillTo)
	p.lists[s].Store(&spill{v, to})
	return to
}

// highest returns the n members that rank highest for a slot, in this order.
func highest(list []*member, s Slot, n int) []*member {
	to := make([]*member, 0, n+1)
	for _, m := range list {
		i := len(to)
		for i > 0 && rank(m, s) > rank(to[i-1], s) {
			i--
		}
		if i == n {
			continue
		}
		to = append(to, nil)
		copy(to[i+1:], to[i:])
		to[i] = m
		to = to[:min(len(to), n)]
	}
	return to
}

// Candidates implements Lister: the owners of the colour, and then its spill list.
func (p *adaptive) Candidates(name string, to []Instance) []Instance {
	for _, m := range p.candidates(p.members(), hashOf(name), nil) {
		to = append(to, m.id)
	}
	return to
}
