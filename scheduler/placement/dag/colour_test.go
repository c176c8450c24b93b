package dag

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Tasks of one colour are a chain: each reads the one before.
func TestChainsAreChains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := graphs(t)
		last := map[string]Task{}
		colours := g.Chains("run-1/")
		for _, task := range g.Order() {
			c := colours[task]
			if before, ok := last[c]; ok && !slices.Contains(g.nodes[task].Inputs, before) {
				t.Fatalf("%d has colour %s, which %d had last, and does not read it", task, c, before)
			}
			if !strings.HasPrefix(c, "run-1/") {
				t.Fatalf("colour %q", c)
			}
			last[c] = task
		}
	})
}

// No chain ends where it could go on: a task that begins a chain has only inputs that others continue.
func TestChainsAreLong(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := graphs(t)
		colours := g.Chains("")
		for task, n := range g.nodes {
			for _, in := range n.Inputs {
				continued := slices.ContainsFunc(g.readers[in], func(r Task) bool { return colours[r] == colours[in] })
				continues := slices.ContainsFunc(n.Inputs, func(i Task) bool { return colours[i] == colours[task] })
				if !continued && !continues {
					t.Fatalf("%d begins a chain, and nobody continues its input %d: %v", task, in, colours)
				}
			}
		}
	})
}

func TestChainFollowsTheLargestInput(t *testing.T) {
	g, err := New([]Node{{Bytes: 1}, {Bytes: 2}, {Inputs: []Task{0, 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if c := g.Chains(""); c[2] != c[1] || c[2] == c[0] {
		t.Errorf("got %v", c)
	}
}

func TestVirtualWorkersAreAsManyAsAskedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := graphs(t)
		n := rapid.IntRange(1, 5).Draw(t, "workers")
		colours, err := g.VirtualWorkers(Workers{N: n}, "w")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range colours {
			if c < "w0" || c > "w4" || int(c[1]-'0') >= n {
				t.Fatalf("colour %q of %d workers", c, n)
			}
		}
		if n == 1 && g.Moved(colours) != 0 {
			t.Fatal("one worker moves bytes to itself")
		}
	})
}

// Stages of equal tasks, each of which reads the one before it: workers are kept busy, and nothing moves.
func TestVirtualWorkersKeepParallelChainsApart(t *testing.T) {
	const width, stages = 4, 5
	var nodes []Node
	for i := range width * stages {
		n := Node{Seconds: 1, Bytes: 1e6}
		if i >= width {
			n.Inputs = []Task{Task(i - width)}
		}
		nodes = append(nodes, n)
	}
	g, err := New(nodes)
	if err != nil {
		t.Fatal(err)
	}
	colours, err := g.VirtualWorkers(Workers{N: width}, "")
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, c := range colours {
		count[c]++
	}
	for c, n := range count {
		if n != stages {
			t.Errorf("worker %s has %d tasks, want %d", c, n, stages)
		}
	}
	if moved := g.Moved(colours); moved != 0 {
		t.Errorf("%v bytes move, none has to", moved)
	}
}

// A slow network makes it pay to wait for the worker that has the input.
func TestSlowNetworkKeepsReadersWithTheirInput(t *testing.T) {
	nodes := []Node{{Seconds: 1, Bytes: 1e9}, {Inputs: []Task{0}, Seconds: 1}, {Inputs: []Task{0}, Seconds: 1}}
	g, err := New(nodes)
	if err != nil {
		t.Fatal(err)
	}
	for rate, want := range map[float64]float64{1e12: 1e9, 1e6: 0} {
		colours, err := g.VirtualWorkers(Workers{N: 2, BytesPerSecond: rate}, "")
		if err != nil {
			t.Fatal(err)
		}
		if moved := g.Moved(colours); moved != want {
			t.Errorf("at %v bytes/s %v bytes move, want %v", rate, moved, want)
		}
	}
}

func TestInvalidWorkers(t *testing.T) {
	g, err := New([]Node{{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []Workers{{}, {N: -1}, {N: 1, BytesPerSecond: -1}} {
		if _, err := g.VirtualWorkers(w, ""); !errors.Is(err, ErrGraph) {
			t.Errorf("%+v: got %v", w, err)
		}
	}
}
