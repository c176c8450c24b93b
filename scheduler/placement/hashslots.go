package placement

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// slotTable says who owns each hash slot. Reading takes no lock; changes need the policy's lock.
type slotTable [Slots]atomic.Pointer[member]

// of returns the slots that each member owns.
func (t *slotTable) of(list []*member) map[*member][]Slot {
	owned := make(map[*member][]Slot, len(list))
	for s := range t {
		if m := t[s].Load(); m != nil {
			owned[m] = append(owned[m], Slot(s))
		}
	}
	return owned
}

// heir is who gets a slot, nil for nobody.
type heir struct {
	slot Slot
	to   *member
}

// take returns what the newcomer gets of a list in which it is: the same part of every owner's slots, and of each those for which it ranks highest.
func (t *slotTable) take(m *member, list []*member) (to []heir) {
	if len(list) == 1 {
		for s := range Slot(Slots) {
			to = append(to, heir{s, m})
		}
		return to
	}
	owned := t.of(list)
	var seen, due int // slots so far, of all and of those that the newcomer gets
	for _, from := range list {
		slots := owned[from]
		seen += len(slots)
		n := seen/len(list) - due
		if due += n; n == 0 {
			continue
		}
		slices.SortFunc(slots, func(a, b Slot) int { return cmp.Compare(rank(m, b), rank(m, a)) })
		for _, s := range slots[:n] {
			to = append(to, heir{s, m})
		}
	}
	return to
}

// heirs returns who gets the slots of a member that is gone: the heaviest first, each goes to whoever has the least weight then.
func (t *slotTable) heirs(gone *member, list []*member, weight []float64, loads map[*member]float64) (to []heir) {
	slots := t.of(list)[gone]
	slices.SortStableFunc(slots, func(a, b Slot) int { return cmp.Compare(weight[b], weight[a]) })
	for _, s := range slots {
		m := fewest(list, s, func(m *member) float64 { return loads[m] })
		loads[m] += weight[s]
		to = append(to, heir{s, m})
	}
	return to
}

// hand gives slots to other owners and notes what moved.
func (t *slotTable) hand(to []heir, all []colour, moved moving) {
	var from [Slots]*member
	var handed [Slots]bool
	for _, h := range to {
		from[h.slot], handed[h.slot] = t[h.slot].Load(), true
		moved.slot(h.slot, from[h.slot], h.to)
		t[h.slot].Store(h.to)
	}
	for _, e := range all {
		if s := slotOf(e.hash); handed[s] && e.route.Load() == nil {
			moved.colour(e, from[s], t[s].Load())
		}
	}
}

// rank orders the members for a slot, the highest first, and the slots for a member (rendezvous hashing).
func rank(m *member, s Slot) uint64 { return mix(m.hash ^ mix(uint64(s))) }

// hashSlots is Palette's bucket hashing: every instance has the same number of slots.
type hashSlots struct {
	mu sync.Mutex // held by who changes instances, slots or colours
	fleet
	colours
	slots slotTable
}

func newHashSlots(cfg Config) *hashSlots { return &hashSlots{colours: newColours(cfg.Colours)} }

// Pick implements Policy.
func (p *hashSlots) Pick(name string) (Instance, bool) {
	if name == "" {
		return p.spread()
	}
	hash := hashOf(name)
	if p.find(hash) == nil && p.mu.TryLock() { // else it is remembered the next time
		p.learn(hash, name, func(colour) {})
		p.mu.Unlock()
	}
	if m := p.slots[slotOf(hash)].Load(); m != nil {
		return m.id, true
	}
	return 0, false
}

// Add implements Policy.
func (p *hashSlots) Add(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.join(id)
	if m == nil {
		return nil
	}
	moved := moving{}
	p.slots.hand(p.slots.take(m, p.members().list), p.all(), moved)
	return moved.moves()
}

// Remove implements Policy.
func (p *hashSlots) Remove(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.leave(id)
	if m == nil {
		return nil
	}
	list := p.members().list
	loads := map[*member]float64{}
	for m, slots := range p.slots.of(list) {
		loads[m] = float64(len(slots))
	}
	moved := moving{}
	p.slots.hand(p.slots.heirs(m, list, slices.Repeat([]float64{1}, Slots), loads), p.all(), moved)
	return moved.moves()
}

// fewest returns the member with the least count; of several the one that ranks highest for the slot. Nil if there are none.
func fewest[N int | float64](list []*member, s Slot, count func(*member) N) (best *member) {
	for _, m := range list {
		if best == nil || count(m) < count(best) || count(m) == count(best) && rank(m, s) > rank(best, s) {
			best = m
		}
	}
	return best
}
