package placement

import (
	"cmp"
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
func hashOf(colour string) uint64 { return max(1, xxhash.Sum64String(colour)) }

func slotOf(hash uint64) Slot { return Slot(hash >> (64 - 14)) }

// route is where a colour goes that does not follow a rule. It does not change.
type route struct {
	to []share // at least one
}

// share is a member's part of a route.
type share struct {
	member *member
	until  float64 // sum of the parts so far; that of the last is 1
}

// cell is what Pick needs of a colour, in a single cache line or two: a miss takes as long as all the rest of a decision.
type cell struct {
	hash  atomic.Uint64         // 0: free
	hits  atomic.Uint32         // of policies that count; since the last harvest
	route atomic.Pointer[route] // of policies that have an entry for the colour; nil: none
}

// colour is a cell with all else that is known. The fields need the policy's lock.
type colour struct {
	*cell
	hash uint64
	name string // "" if it is too long
	heat *float64
}

// colours remembers at most limit colours in a table with open addressing. Finding takes no lock; all else needs the policy's lock.
type colours struct {
	table atomic.Pointer[table]
	n     int
	limit int
}

type table struct {
	cells []cell // as many as a power of two
	names []string
	heats []float64
}

func newColours(limit int) colours { return colours{limit: limit} }

func (c *colours) find(hash uint64) *cell {
	t := c.table.Load()
	if t == nil {
		return nil
	}
	mask := uint64(len(t.cells) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		switch t.cells[i].hash.Load() {
		case hash:
			return &t.cells[i]
		case 0:
			return nil
		}
	}
}

// learn remembers a colour, and returns what is remembered already if it is there. When there are too many, it forgets the half that has
// the least heat and hits, and calls forgotten for each of these.
func (c *colours) learn(hash uint64, name string, forgotten func(colour)) *cell {
	if e := c.find(hash); e != nil {
		return e
	}
	if c.n >= c.limit {
		c.forget(forgotten)
	}
	if t := c.table.Load(); t == nil || 4*(c.n+1) > 3*len(t.cells) {
		c.rebuild(c.all())
	}
	if len(name) > maxName {
		name = ""
	}
	c.n++
	return c.table.Load().add(hash, strings.Clone(name), 0).cell // name may be a part of something large
}

// add takes a colour in, which others can find from then on.
func (t *table) add(hash uint64, name string, heat float64) colour {
	mask := uint64(len(t.cells) - 1)
	i := hash & mask
	for t.cells[i].hash.Load() != 0 {
		i = (i + 1) & mask
	}
	t.names[i], t.heats[i] = name, heat
	t.cells[i].hash.Store(hash)
	return colour{&t.cells[i], hash, name, &t.heats[i]}
}

// all returns the colours, in an order that follows from the history.
func (c *colours) all() []colour {
	list := make([]colour, 0, c.n)
	if t := c.table.Load(); t != nil {
		for i := range t.cells {
			if hash := t.cells[i].hash.Load(); hash != 0 {
				list = append(list, colour{&t.cells[i], hash, t.names[i], &t.heats[i]})
			}
		}
	}
	return list
}

// forget drops half of the colours.
func (c *colours) forget(forgotten func(colour)) {
	list := c.all()
	weight := make(map[uint64]float64, len(list))
	for _, e := range list {
		weight[e.hash] = *e.heat + float64(e.hits.Load())
	}
	slices.SortStableFunc(list, func(a, b colour) int { return cmp.Compare(weight[b.hash], weight[a.hash]) })
	keep := len(list) / 2
	for _, e := range list[:keep] { // so that what was picked long ago counts less
		e.hits.Store(e.hits.Load() / 2)
	}
	for _, e := range list[keep:] {
		forgotten(e)
	}
	c.rebuild(list[:keep])
}

// rebuild makes a new table of these colours. Who looks into the old one meanwhile is not disturbed; a few hits may be lost.
func (c *colours) rebuild(list []colour) {
	size := 64
	for size < 2*len(list) {
		size *= 2
	}
	t := &table{make([]cell, size), make([]string, size), make([]float64, size)}
	for _, e := range list {
		copied := t.add(e.hash, e.name, *e.heat)
		copied.hits.Store(e.hits.Load())
		copied.route.Store(e.route.Load())
	}
	c.n = len(list)
	c.table.Store(t)
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
func (m moving) colour(e colour, from, to *member) {
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
		return cmp.Compare(uint64(a.From)<<32|uint64(a.To), uint64(b.From)<<32|uint64(b.To))
	})
	return list
}
