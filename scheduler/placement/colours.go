package placement

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// Slot is one of the hash slots into which colours fall by their hash.
type Slot uint16

// Slots is how many hash slots there are, as many as Palette has.
const Slots = 1 << 14

// maxName is the longest colour whose name is kept. Longer ones are remembered by their hash only, and do not show in Moves.
const maxName = 256

// SlotOf returns the hash slot of a colour.
func SlotOf(colour string) Slot { return slotOf(hashOf(colour)) }

// hashOf stands for a colour everywhere inside: that two colours have the same, about once in 10^9 pairs of 10^5 colours, only sends both to one place.
func hashOf(colour string) uint64 { return xxhash.Sum64String(colour) }

func slotOf(hash uint64) Slot { return Slot(hash >> (64 - 14)) }

// colour is what is remembered of one.
type colour struct {
	hash  uint64
	hits  atomic.Uint32          // since the last harvest
	owner atomic.Pointer[member] // of least-assigned
	route atomic.Pointer[route]  // of adaptive, for the exact table; nil: the slot's owner
	heat  float64                // of adaptive; needs the policy's lock
	name  string
}

func (e *colour) count() { e.hits.Add(1) }

// colours is a table of at most limit colours with open addressing. Finding takes no lock; all changes need the policy's lock.
type colours struct {
	table atomic.Pointer[[]atomic.Pointer[colour]]
	n     int
	limit int
}

func newColours(limit int) colours { return colours{limit: limit} }

func (c *colours) find(hash uint64) *colour {
	t := c.table.Load()
	if t == nil {
		return nil
	}
	list := *t
	mask := uint64(len(list) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		if e := list[i].Load(); e == nil || e.hash == hash {
			return e
		}
	}
}

// learn remembers a colour, and returns what is remembered already if it is there. When the table is full, it forgets the half that was
// picked least, and calls forgotten for each of these.
func (c *colours) learn(hash uint64, name string, forgotten func(*colour)) *colour {
	if e := c.find(hash); e != nil {
		return e
	}
	if c.n >= c.limit {
		c.forget(forgotten)
	}
	if t := c.table.Load(); t == nil || 2*(c.n+1) > len(*t) {
		c.rebuild(c.all())
	}
	e := &colour{hash: hash}
	if len(name) <= maxName {
		e.name = strings.Clone(name) // it may be a part of something large
	}
	place(*c.table.Load(), e)
	c.n++
	return e
}

// all returns the colours in the order of their hashes, which does not depend on when they were learnt.
func (c *colours) all() []*colour {
	list := make([]*colour, 0, c.n)
	if t := c.table.Load(); t != nil {
		for i := range *t {
			if e := (*t)[i].Load(); e != nil {
				list = append(list, e)
			}
		}
	}
	slices.SortFunc(list, func(a, b *colour) int { return compare(a.hash, b.hash) })
	return list
}

// forget drops half of the colours, those with the least heat and hits.
func (c *colours) forget(forgotten func(*colour)) {
	list := c.all()
	weight := make(map[*colour]float64, len(list))
	for _, e := range list {
		weight[e] = e.heat + float64(e.hits.Load())
	}
	slices.SortStableFunc(list, func(a, b *colour) int { return compare(weight[b], weight[a]) })
	keep := len(list) / 2
	for _, e := range list[:keep] { // so that what was picked long ago counts less
		e.hits.Store(e.hits.Load() / 2)
	}
	for _, e := range list[keep:] {
		forgotten(e)
	}
	c.rebuild(list[:keep])
}

// rebuild makes a new table of these colours, so that those who look into the old one are not disturbed.
func (c *colours) rebuild(list []*colour) {
	size := 64
	for size < 4*len(list) {
		size *= 2
	}
	table := make([]atomic.Pointer[colour], size)
	for _, e := range list {
		place(table, e)
	}
	c.n = len(list)
	c.table.Store(&table)
}

func place(table []atomic.Pointer[colour], e *colour) {
	mask := uint64(len(table) - 1)
	i := e.hash & mask
	for table[i].Load() != nil {
		i = (i + 1) & mask
	}
	table[i].Store(e)
}

func compare[T uint64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// moving collects Moves.
type moving map[[2]Instance]*Move

func (m moving) between(from, to *member) *Move {
	key := [2]Instance{from.id, to.id}
	if m[key] == nil {
		m[key] = &Move{From: from.id, To: to.id}
	}
	return m[key]
}

// colour notes that a colour has another owner.
func (m moving) colour(e *colour, from, to *member) {
	if from != nil && to != nil && from != to && e.name != "" {
		mv := m.between(from, to)
		mv.Colours = append(mv.Colours, e.name)
	}
}

// slot notes that a slot has another owner.
func (m moving) slot(s Slot, from, to *member) {
	if from != nil && to != nil && from != to {
		mv := m.between(from, to)
		mv.Slots = append(mv.Slots, s)
	}
}

// moves returns what was collected, by From and To.
func (m moving) moves() Moves {
	var list Moves
	for _, mv := range m {
		list = append(list, *mv)
	}
	slices.SortFunc(list, func(a, b Move) int {
		return compare(uint64(a.From)<<32|uint64(a.To), uint64(b.From)<<32|uint64(b.To))
	})
	return list
}
