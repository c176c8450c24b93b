package placement

import (
	"math"
	"slices"
)

const (
	// slack is how much load beyond its quota an instance may keep rather than to give something away, of the quota.
	slack = 0.01
	// doubt is by how many standard deviations the heat of something must be too much or too little for where it is: heat is a count.
	doubt = 1
	// fewHits is the heat below which a colour's rank among others says nothing.
	fewHits = 2
	// gain is how much a wrong share of load is answered by a change of the quota.
	gain = 10
)

// item is what a Rebalance places: a colour with a route, or a slot with all its other colours.
type item struct {
	colour *cell // nil for a slot
	slot   Slot
	load   float64
	heat   float64   // of its colours, the mean over their load
	at     []*member // where it is
	to     []share   // where it will be
}

// plan is a layout in the making.
type plan struct {
	order []*member // from hot to cold
	quota float64   // load that each of them is to have
	hot   float64   // the same for each of the hot ones, and of the others
	cold  float64
	load  map[*member]float64
	bound float64
}

// lay sets where items go, which come from hot to cold. tier is how many of the members are for hot ones. What is hot beyond doubt is placed
// first, so that nothing else takes its room.
func (pl *plan) lay(items []*item, tier int) {
	pl.correct(tier)
	least := pl.coldest(items, tier)
	in := make(map[*member]int, len(pl.order))
	for i, m := range pl.order {
		in[m] = i
	}
	sure := 0
	for sure < len(items) && !items[sure].fits(false, least) {
		sure++
	}
	for _, part := range [][]*item{items[:sure], items[sure:]} {
		for _, it := range pl.keep(part, in, tier, least) {
			hot, cold := pl.least(pl.order[:tier], it), pl.least(pl.order[tier:], it)
			to := cold
			if cold == nil || it.heat >= least && pl.load[hot]+it.load <= pl.room(true) {
				to = hot
			}
			// No move among equals: if all are full, it may as well stay.
			if i, ok := in[it.at[0]]; ok && (i < tier) == (to == hot) && pl.load[it.at[0]] <= pl.load[to]+slack*pl.quota {
				to = it.at[0]
			}
			pl.give(it, to)
		}
	}
}

// keep leaves items where they are, if they fit there and have room, and returns the others.
func (pl *plan) keep(items []*item, in map[*member]int, tier int, least float64) (movers []*item) {
	for _, it := range items {
		m := it.at[0]
		if i, ok := in[m]; ok && it.fits(i < tier, least) && pl.load[m]+it.load <= pl.room(i < tier) {
			pl.give(it, m)
		} else {
			movers = append(movers, it)
		}
	}
	return movers
}

// correct sets the quotas. What is hot by chance cools down, so hot members get less than their heat says, and the others more: as far as
// they got too little or too much of late, their quotas are raised or lowered.
func (pl *plan) correct(tier int) {
	pl.hot, pl.cold = pl.quota, pl.quota
	var all, hot float64
	for i, m := range pl.order {
		if all += m.served; i < tier {
			hot += m.served
		}
	}
	n := float64(len(pl.order))
	if t := float64(tier); t > 0 && t < n && all > 0 {
		excess := hot/t/(all/n) - 1
		pl.hot *= 1 - max(-0.2, min(0.2, gain*excess))
		pl.cold = (pl.quota*n - pl.hot*t) / (n - t)
	}
}

// room is how much load a member may have and still keep all of it.
func (pl *plan) room(hot bool) float64 {
	if hot {
		return pl.hot * (1 + slack)
	}
	return pl.cold * (1 + slack)
}

func (pl *plan) least(list []*member, it *item) *member {
	return fewest(list, it.slot, func(m *member) float64 { return pl.load[m] })
}

func (pl *plan) give(it *item, m *member) {
	pl.load[m] += it.load
	it.to = m.only.to
}

// coldest returns the heat of the coldest item that fills up the hot members.
func (pl *plan) coldest(items []*item, tier int) float64 {
	if tier == len(pl.order) {
		return 0
	}
	load := 0.0
	for _, it := range items {
		if load += it.load; load >= pl.hot*float64(tier) {
			return it.heat
		}
	}
	return 0
}

// fits says whether an item may be among the hot, or else the cold, whose heats meet at a limit.
func (it *item) fits(hot bool, limit float64) bool {
	margin := doubt * math.Sqrt(it.heat)
	if hot {
		return it.heat+margin >= limit
	}
	return it.heat-margin < limit
}

// giants places the colours that need an instance of their own or more, and takes both out of the plan.
func (pl *plan) giants(items []*item) []*item {
	for len(items) > 0 && len(pl.order) > 1 && items[0].colour != nil && items[0].load >= pl.quota {
		it, rest := items[0], pl.quota*float64(len(pl.order))-items[0].load
		n := 1
		if pl.bound > 0 {
			n = min(len(pl.order)-1, int(math.Ceil(it.load/(pl.quota*(1+pl.bound)/2))))
		}
		for _, m := range slices.Concat(it.at, pl.order) { // rather where it is
			if len(it.to) == n {
				break
			}
			if i := slices.Index(pl.order, m); i >= 0 {
				pl.order = slices.Delete(pl.order, i, i+1)
				it.to = append(it.to, share{member: m})
			}
		}
		equally(it.to)
		pl.quota = rest / float64(len(pl.order))
		items = items[1:]
	}
	return items
}

// tier returns how many members there are to be for hot colours: as many as the hottest fill, when each has no more of them than it keeps
// warm. All, if that is enough for all colours. heats come from hot to cold.
func (pl *plan) tier(heats []float64, warm int) (tier int) {
	warm += warm / 2 // a cache keeps the hotter ones of more
	load := 0.0
	for i, h := range heats {
		if h < fewHits {
			break // too few to be judged
		}
		if load += h; (i+1)%warm != 0 {
			continue
		}
		if load < float64(tier+1)*pl.quota {
			return max(tier, 1)
		}
		tier++
	}
	return len(pl.order)
}
