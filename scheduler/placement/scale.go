package placement

import "slices"

// Add implements Policy: the new instance gets its share of the slots of every owner. Routes stay as they are until the next Rebalance.
func (p *adaptive) Add(id Instance) Moves {
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

// Remove implements Policy: the hottest first, what the instance had goes to those with the least heat.
func (p *adaptive) Remove(id Instance) Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.leave(id)
	if m == nil {
		return nil
	}
	all := p.all()
	list := p.members().list
	weight, loads := p.measure(all)
	moved := moving{}
	for _, e := range all {
		r := e.route.Load()
		if r == nil || !slices.Contains(p.owners(e), m) {
			continue
		}
		if e.route.Store(r.without(m)); e.route.Load() == nil && len(list) > 0 {
			heir := fewest(list, slotOf(e.hash), func(o *member) float64 { return loads[o] })
			loads[heir] += *e.heat
			moved.colour(e, m, heir)
			e.route.Store(heir.only)
		}
	}
	p.slots.hand(p.slots.heirs(m, list, weight[:], loads), all, moved)
	return moved.moves()
}

// measure returns the heat of slots, without their hot colours, and of members with all they have. What is not known to be hot counts a little too,
// so that not all of it goes to one place.
func (p *adaptive) measure(all []colour) (slots [Slots]float64, loads map[*member]float64) {
	loads = map[*member]float64{}
	total := 1.0
	for _, e := range all {
		heat := *e.heat + float64(e.hits.Load())
		total += heat
		if r := e.route.Load(); r == nil {
			slots[slotOf(e.hash)] += heat
		} else {
			for _, s := range r.to {
				loads[s.member] += heat / float64(len(r.to))
			}
		}
	}
	for s := range slots {
		slots[s] += total / Slots / 8
		loads[p.slots[s].Load()] += slots[s]
	}
	return slots, loads
}

// without returns the route without a member, in equal parts; nil if nobody is left.
func (r *route) without(gone *member) *route {
	var to []share
	for _, s := range r.to {
		if s.member != gone {
			to = append(to, share{member: s.member})
		}
	}
	if to == nil {
		return nil
	}
	return &route{equally(to)}
}

// equally makes the parts of all members the same.
func equally(to []share) []share {
	for i := range to {
		to[i].until = float64(i+1) / float64(len(to))
	}
	return to
}
