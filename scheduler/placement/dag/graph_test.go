package dag

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// graphs draws graphs: tasks read any that come before them in a drawn order.
func graphs(t *rapid.T) *Graph {
	n := rapid.IntRange(0, 30).Draw(t, "tasks")
	names := rapid.Permutation(tasks(n)).Draw(t, "order")
	nodes := make([]Node, n)
	for i, task := range names {
		var inputs []Task
		if i > 0 {
			inputs = rapid.SliceOfN(rapid.SampledFrom(names[:i]), 0, 4).Draw(t, "inputs")
		}
		nodes[task] = Node{Inputs: inputs, Seconds: rapid.Float64Range(0, 10).Draw(t, "seconds"), Bytes: rapid.Float64Range(0, 1e9).Draw(t, "bytes")}
	}
	g, err := New(nodes)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func tasks(n int) []Task {
	list := make([]Task, n)
	for i := range list {
		list[i] = Task(i)
	}
	return list
}

func TestInvalidGraphs(t *testing.T) {
	for name, nodes := range map[string][]Node{
		"cycle":            {{Inputs: []Task{1}}, {Inputs: []Task{0}}},
		"itself":           {{Inputs: []Task{0}}},
		"cycle at the end": {{}, {Inputs: []Task{0, 2}}, {Inputs: []Task{1}}},
		"unknown input":    {{Inputs: []Task{1}}},
		"negative input":   {{Inputs: []Task{-1}}},
		"negative time":    {{Seconds: -1}},
		"no number":        {{Bytes: math.NaN()}},
		"endless":          {{Seconds: math.Inf(1)}},
	} {
		if _, err := New(nodes); !errors.Is(err, ErrGraph) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestOrderHasEveryTaskAfterItsInputs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := graphs(t)
		order := g.Order()
		if sorted := slices.Sorted(slices.Values(order)); !slices.Equal(sorted, tasks(g.Len())) {
			t.Fatalf("order is %v", order)
		}
		for task, n := range g.nodes {
			for _, in := range n.Inputs {
				if slices.Index(order, in) > slices.Index(order, Task(task)) {
					t.Fatalf("%d comes before its input %d in %v", task, in, order)
				}
			}
		}
	})
}
