package placement

import (
	"cmp"
	"math"
	"slices"
)

const (
	// fade is what is left of heat after a Rebalance: with one a second, half of it is gone after 34 seconds.
	fade = 0.98
	// hotShare is how hot a colour must be to get a route, of the mean load of an instance. It loses it below half of that.
	hotShare = 1.0 / 16
)

// Rebalance implements Rebalancer. It takes some 50 ms with 1,000 instances and 10^5 colours, while Pick goes on.
func (p *adaptive) Rebalance() Moves {
	p.mu.Lock()
	defer p.mu.Unlock()
	list, all := p.members().list, p.all()
	items, total := p.harvest(all, len(list))
	if len(list) == 0 || total == 0 {
		return nil
	}
	slices.SortStableFunc(items, func(a, b *item) int { return cmp.Compare(b.heat, a.heat) })
	pl := &plan{order: byHeat(list, items), quota: total / float64(len(list)), load: map[*member]float64{}, bound: p.bound}
	rest := pl.giants(items)
	p.retier(pl, all, len(items)-len(rest))
	pl.lay(rest, min(p.tier, len(pl.order)))
	return p.settle(all, items)
}

// retier sets how many members are for hot colours, unless it makes little difference.
func (p *adaptive) retier(pl *plan, all []colour, giants int) {
	if p.warm == 0 {
		p.tier = len(pl.order)
		return
	}
	heats := make([]float64, len(all))
	for i, e := range all {
		heats[i] = *e.heat
	}
	slices.SortFunc(heats, func(a, b float64) int { return cmp.Compare(b, a) })
	if tier := pl.tier(heats[giants:], p.warm); p.tier == 0 || 16*max(tier-p.tier, p.tier-tier) > len(pl.order) {
		p.tier = tier
	}
}

// harvest turns counts into heat and returns what there is to place, and the heat of all.
func (p *adaptive) harvest(all []colour, instances int) (items []*item, total float64) {
	for _, m := range p.members().list {
		m.served *= fade
	}
	for _, e := range all {
		hits := float64(e.hits.Swap(0))
		*e.heat = *e.heat*fade + hits
		total += *e.heat
		owners := p.owners(e)
		for _, m := range owners {
			if m != nil {
				m.served += hits / float64(len(owners))
			}
		}
	}
	p.newness, p.met = p.newness*fade+float64(p.met), 0
	hot := hotShare * total / float64(max(instances, 1))
	var loads, squares [Slots]float64
	for _, e := range all {
		if r := e.route.Load(); *e.heat < hot && (r == nil || *e.heat < hot/2) {
			loads[slotOf(e.hash)] += *e.heat
			squares[slotOf(e.hash)] += *e.heat * *e.heat
		} else {
			items = append(items, &item{colour: e.cell, load: *e.heat, heat: *e.heat, at: p.owners(e)})
		}
	}
	slots, owners := make([]item, Slots), make([]*member, Slots) // at once, which is faster
	for s := range slots {
		owners[s] = p.slots[s].Load()
		slots[s] = item{slot: Slot(s), load: loads[s] + p.newness/Slots, at: owners[s : s+1]} // it may get some of what is new
		if loads[s] > 0 {
			slots[s].heat = squares[s] / loads[s]
		}
		items = append(items, &slots[s])
	}
	return items, total + p.newness
}

// owners returns where a colour is.
func (p *adaptive) owners(e colour) []*member {
	r := e.route.Load()
	if r == nil {
		return []*member{p.slots[slotOf(e.hash)].Load()}
	}
	list := make([]*member, len(r.to))
	for i, s := range r.to {
		list[i] = s.member
	}
	return list
}

// byHeat orders the members by the heat of what they have, the mean over their load.
func byHeat(list []*member, items []*item) []*member {
	sum, squares := map[*member]float64{}, map[*member]float64{}
	for _, it := range items {
		for _, m := range it.at {
			part := it.load / float64(len(it.at))
			sum[m] += part
			squares[m] += part * it.heat
		}
	}
	heat := func(m *member) float64 { return squares[m] / max(sum[m], math.SmallestNonzeroFloat64) }
	order := slices.Clone(list)
	slices.SortStableFunc(order, func(a, b *member) int { return cmp.Compare(heat(b), heat(a)) })
	return order
}

// settle makes the layout valid and says what moved.
func (p *adaptive) settle(all []colour, items []*item) Moves {
	moved := moving{}
	var slots [Slots]*member
	routes := map[*cell]*route{}
	for _, it := range items {
		switch {
		case it.colour == nil:
			slots[it.slot] = it.to[0].member
		case len(it.to) == 1:
			routes[it.colour] = it.to[0].member.only
		default:
			routes[it.colour] = &route{it.to}
		}
	}
	for _, e := range all {
		before, r := p.owners(e), routes[e.cell]
		e.route.Store(r)
		if r == nil {
			r = slots[slotOf(e.hash)].only
		}
		for _, s := range r.to {
			if !slices.Contains(before, s.member) {
				moved.colour(e, before[0], s.member)
			}
		}
	}
	for s, m := range slots {
		moved.slot(Slot(s), p.slots[s].Load(), m)
		p.slots[s].Store(m)
	}
	return moved.moves()
}
