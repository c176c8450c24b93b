package placement

import (
	"math"
	"slices"
)

const (
	// slack is how much load beyond the quota an instance may keep rather than to move something, of the quota.
	slack = 0.02
	// full is how much of the quota must be free for an instance to get anything more.
	full = 0.005
)

// plan is a layout in the making: every member gets its quota of load, the hottest items go to the first members.
type plan struct {
	order []*member // hot to cold
	index map[*member]int
	load  []float64 // given so far, by place in order
	taken []bool    // has one hot colour and nothing else
	quota float64
	bound float64
	first int // all before are full
}

func newPlan(order []*member, total, bound float64) *plan {
	pl := &plan{order: order, index: map[*member]int{}, load: make([]float64, len(order)), taken: make([]bool, len(order)), bound: bound}
	for i, m := range order {
		pl.index[m] = i
	}
	pl.quota = total / float64(len(order))
	return pl
}

// lay sets where items go, which come from hot to cold.
func (pl *plan) lay(items []*item) {
	free := len(pl.order)
	rest := pl.quota * float64(free)
	for len(items) > 0 && free > 1 && items[0].colour != nil && items[0].load >= pl.quota {
		n := pl.alone(items[0], free-1)
		rest, free = rest-items[0].load, free-n
		pl.quota = rest / float64(free)
		items = items[1:]
	}
	for _, it := range items {
		i := pl.place(it)
		pl.load[i] += it.load
		it.to = []share{{pl.order[i], 1}}
	}
}

// alone gives an item members that have nothing else, at most so many, and returns how many.
func (pl *plan) alone(it *item, most int) int {
	n := 1
	if pl.bound > 0 {
		stretched := pl.quota * (1 + pl.bound) / 2
		n = min(most, int(math.Ceil(it.load/stretched)))
	}
	for _, m := range slices.Concat(it.at, pl.order) { // rather where it is
		if i, ok := pl.index[m]; ok && !pl.taken[i] && len(it.to) < n {
			pl.taken[i] = true
			it.to = append(it.to, share{member: m})
		}
	}
	equally(it.to)
	return n
}

// place returns where an item goes: to the first member with room, or, if it is on one of similar heat with room, it stays.
func (pl *plan) place(it *item) int {
	for pl.first < len(pl.order)-1 && (pl.taken[pl.first] || pl.load[pl.first] > pl.quota*(1-full)) {
		pl.first++
	}
	to := -1
	least := -1
	for i := pl.first; i < len(pl.order); i++ {
		if pl.taken[i] {
			continue
		}
		if pl.load[i]+it.load <= pl.quota {
			to = i
			break
		}
		if least < 0 || pl.load[i] < pl.load[least] {
			least = i
		}
	}
	if to < 0 {
		to = least
	}
	near := max(1, len(pl.order)/16)
	for _, m := range it.at {
		if i, ok := pl.index[m]; ok && !pl.taken[i] && abs(i-to) <= near && pl.load[i]+it.load <= pl.quota*(1+slack) {
			return i
		}
	}
	return to
}

func abs(x int) int { return max(x, -x) }
