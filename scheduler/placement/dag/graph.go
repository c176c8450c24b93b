package dag

import (
	"errors"
	"fmt"
	"math"
)

// Task is the place of a task in its graph, from 0.
type Task int

// Node describes a task.
type Node struct {
	Name    string  // for errors
	Inputs  []Task  // whose outputs it reads, in the order in which it gets them
	Seconds float64 // that it is expected to run
	Bytes   float64 // that its output is expected to have
}

// ErrGraph is the kind of errors in a graph or in what is asked of it.
var ErrGraph = errors.New("invalid graph of tasks")

// Graph is a valid directed acyclic graph. It does not change.
type Graph struct {
	nodes   []Node
	readers [][]Task // of each task's output, without repetition
	order   []Task   // each after its inputs
}

// New returns the graph of these tasks. The nodes must not be changed afterwards.
func New(nodes []Node) (*Graph, error) {
	g := &Graph{nodes: nodes, readers: make([][]Task, len(nodes))}
	for i, n := range nodes {
		if !valid(n.Seconds) || !valid(n.Bytes) {
			return nil, fmt.Errorf("%w: task %d (%s) has %v seconds and %v bytes, must be 0 or more", ErrGraph, i, n.Name, n.Seconds, n.Bytes)
		}
		for _, in := range distinct(n.Inputs) {
			if in < 0 || int(in) >= len(nodes) {
				return nil, fmt.Errorf("%w: task %d (%s) reads task %d, there are %d", ErrGraph, i, n.Name, in, len(nodes))
			}
			g.readers[in] = append(g.readers[in], Task(i))
		}
	}
	return g, g.sort()
}

func valid(x float64) bool { return x >= 0 && !math.IsInf(x, 1) }

func distinct(list []Task) (once []Task) {
	seen := make(map[Task]bool, len(list))
	for _, t := range list {
		if !seen[t] {
			seen[t] = true
			once = append(once, t)
		}
	}
	return once
}

// sort sets the order, of the tasks that are ready the first.
func (g *Graph) sort() error {
	waits := g.waits()
	for t, n := range waits {
		if n == 0 {
			g.order = append(g.order, Task(t))
		}
	}
	for i := 0; i < len(g.order); i++ {
		for _, r := range g.readers[g.order[i]] {
			if waits[r]--; waits[r] == 0 {
				g.order = append(g.order, r)
			}
		}
	}
	for t, n := range waits {
		if n > 0 {
			return fmt.Errorf("%w: task %d (%s) waits for itself, or for tasks that do", ErrGraph, t, g.nodes[t].Name)
		}
	}
	return nil
}

// waits returns for how many other tasks each waits.
func (g *Graph) waits() []int {
	waits := make([]int, len(g.nodes))
	for _, readers := range g.readers {
		for _, r := range readers {
			waits[r]++
		}
	}
	return waits
}

// Len returns the number of tasks.
func (g *Graph) Len() int { return len(g.nodes) }

// Order returns the tasks, each after its inputs.
func (g *Graph) Order() []Task { return append([]Task(nil), g.order...) }

// Moved returns how many bytes go from one colour to another if each colour is one instance: an output counts once for each other colour that
// reads it.
func (g *Graph) Moved(colours Colours) (bytes float64) {
	for t, readers := range g.readers {
		to := map[string]bool{colours[t]: true}
		for _, r := range readers {
			if !to[colours[r]] {
				to[colours[r]] = true
				bytes += g.nodes[t].Bytes
			}
		}
	}
	return bytes
}
