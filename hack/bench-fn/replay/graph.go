package replay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Graph is who is whose friend: the friends of person i are at i.
type Graph [][]int32

const (
	// maxPeople and maxEdges bound what ReadGraph takes.
	maxPeople = 1 << 20
	maxEdges  = 1 << 24
)

// ErrGraph is the kind of errors in the text of a graph.
var ErrGraph = errors.New("invalid graph")

// ReadGraph reads a graph as text: on each line two people who are friends, numbered from 0.
func ReadGraph(r io.Reader) (Graph, error) {
	var g Graph
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		a, b, err := parseEdge(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrGraph, n, err)
		}
		if n > maxEdges {
			return nil, fmt.Errorf("%w: more than %d lines", ErrGraph, maxEdges)
		}
		for len(g) <= max(a, b) {
			g = append(g, nil)
		}
		g.befriend(a, b)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("graph: %w", err)
	}
	if len(g) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrGraph)
	}
	return g, nil
}

func parseEdge(line string) (a, b int, err error) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return 0, 0, fmt.Errorf("%d numbers, want two", len(fields))
	}
	for i, to := range []*int{&a, &b} {
		if *to, err = strconv.Atoi(fields[i]); err != nil {
			return 0, 0, err
		}
		if *to < 0 || *to >= maxPeople {
			return 0, 0, fmt.Errorf("person %d, must be 0 to %d", *to, maxPeople-1)
		}
	}
	return a, b, nil
}

func (g Graph) befriend(a, b int) {
	g[a] = append(g[a], int32(b))
	g[b] = append(g[b], int32(a))
}

// Synthetic returns a graph with so many people and friendships, always the same: how many friends people have is distributed
// log-normally, as in networks of students, and who they are is drawn.
func Synthetic(people, friendships int) Graph {
	r := rand.New(rand.NewPCG(962, 18812))
	weights := make([]float64, people)
	for i := range weights {
		weights[i] = math.Exp(r.NormFloat64() * 0.9)
	}
	pick := newDraw(weights)
	g := make(Graph, people)
	known := map[[2]int]bool{}
	for len(known) < friendships {
		a, b := pick.next(r), pick.next(r)
		if a, b = min(a, b), max(a, b); a != b && !known[[2]int{a, b}] {
			known[[2]int{a, b}] = true
			g.befriend(a, b)
		}
	}
	return g
}
