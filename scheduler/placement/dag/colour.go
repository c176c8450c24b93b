package dag

import (
	"fmt"
	"slices"
	"strconv"
)

// Colours are those of a graph's tasks, by Task.
type Colours []string

// Chains gives each chain of tasks a colour of its own. A task continues the chain of that input which is the largest of those that no other task
// continues, and begins a chain if there is none. Colours are prefix and a number; with different prefixes, two runs share nothing.
func (g *Graph) Chains(prefix string) Colours {
	colours := make(Colours, len(g.nodes))
	continued := make([]bool, len(g.nodes))
	chains := 0
	for _, t := range g.order {
		from := Task(-1)
		for _, in := range g.nodes[t].Inputs {
			if !continued[in] && (from < 0 || g.nodes[in].Bytes > g.nodes[from].Bytes) {
				from = in
			}
		}
		if from >= 0 {
			continued[from] = true
			colours[t] = colours[from]
			continue
		}
		colours[t] = prefix + strconv.Itoa(chains)
		chains++
	}
	return colours
}

// Workers describes the virtual workers of a colouring.
type Workers struct {
	N int // 1 or more
	// BytesPerSecond is how fast an output gets from one to another. Default 1.25e9, 10 Gbit/s. The slower, the less is moved.
	BytesPerSecond float64
}

const defaultBytesPerSecond = 1.25e9

// VirtualWorkers schedules the tasks on virtual workers and gives each worker a colour: prefix and its number. It is list scheduling: tasks with the longest
// way to the end come first, and each goes to the worker on which it ends first, the transfer of its inputs included; among equals to
// that where the fewest bytes have to be moved.
func (g *Graph) VirtualWorkers(w Workers, prefix string) (Colours, error) {
	if w.BytesPerSecond == 0 {
		w.BytesPerSecond = defaultBytesPerSecond
	}
	if w.N < 1 || !(w.BytesPerSecond > 0) {
		return nil, fmt.Errorf("%w: %d workers with %v bytes/s, must be 1 or more with more than 0", ErrGraph, w.N, w.BytesPerSecond)
	}
	s := &schedule{g: g, rate: w.BytesPerSecond, free: make([]float64, w.N), on: make([]int, len(g.nodes)), end: make([]float64, len(g.nodes))}
	for _, t := range s.byPriority() {
		s.place(t)
	}
	colours := make(Colours, len(g.nodes))
	for t, worker := range s.on {
		colours[t] = prefix + strconv.Itoa(worker)
	}
	return colours, nil
}

// schedule is the plan of when which task runs where.
type schedule struct {
	g    *Graph
	rate float64
	free []float64 // from when on, by worker
	on   []int     // worker, by task
	end  []float64 // by task
}

// byPriority returns the tasks by their way to the end, the longest first. An input is never after its reader: its way is not shorter, and of the
// same length it comes first in the graph's order.
func (s *schedule) byPriority() []Task {
	way := make([]float64, len(s.g.nodes))
	for _, t := range slices.Backward(s.g.order) {
		for _, r := range s.g.readers[t] {
			way[t] = max(way[t], way[r]+s.g.nodes[t].Bytes/s.rate)
		}
		way[t] += s.g.nodes[t].Seconds
	}
	order := s.g.Order()
	slices.SortStableFunc(order, func(a, b Task) int {
		switch {
		case way[a] > way[b]:
			return -1
		case way[a] < way[b]:
			return 1
		}
		return 0
	})
	return order
}

// place puts a task whose inputs are placed on the best worker.
func (s *schedule) place(t Task) {
	best, bestEnd, bestMoved := 0, 0.0, 0.0
	for w := range s.free {
		begin, moved := s.free[w], 0.0
		for _, in := range distinct(s.g.nodes[t].Inputs) {
			there := s.end[in]
			if s.on[in] != w {
				moved += s.g.nodes[in].Bytes
				there += s.g.nodes[in].Bytes / s.rate
			}
			begin = max(begin, there)
		}
		end := begin + s.g.nodes[t].Seconds
		if w == 0 || end < bestEnd || end == bestEnd && moved < bestMoved {
			best, bestEnd, bestMoved = w, end, moved
		}
	}
	s.on[t], s.end[t], s.free[best] = best, bestEnd, bestEnd
}
