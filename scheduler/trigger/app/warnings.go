package app

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// Warnings are what may be meant so, but is often a mistake: cycles, which only limits end, and parts that nothing leads to or from.
func (a *Application) Warnings() (list []string) {
	for _, cycle := range a.cycles() {
		list = append(list, "cycle, which only the limits of the session may end: "+strings.Join(cycle, " -> "))
	}
	for _, b := range a.Buckets {
		if len(a.sources(b)) == 0 {
			list = append(list, fmt.Sprintf("bucket %s: no function puts into it, and it is no input", b))
		}
		if !slices.ContainsFunc(a.Triggers, func(t trigger.Trigger) bool { return t.Bucket == b }) {
			list = append(list, fmt.Sprintf("bucket %s: no trigger looks at it", b))
		}
	}
	for _, f := range a.Functions {
		if !slices.ContainsFunc(a.Triggers, func(t trigger.Trigger) bool { return t.Function == f }) {
			list = append(list, fmt.Sprintf("function %s: no trigger runs it", f))
		}
	}
	return list
}

// cycles returns one shortest cycle of each part of the graph in which everything leads to everything, with its first function at both ends.
func (a *Application) cycles() (found [][]string) {
	next := a.successors()
	covered := map[string]bool{} // nodes of parts whose cycle is found
	for _, f := range a.Functions {
		start := functionNode(f)
		if covered[start] {
			continue
		}
		cycle := shortest(next, start)
		if cycle == nil {
			continue
		}
		found = append(found, cycle)
		before, after := reach(reversed(next), start), reach(next, start)
		for node := range after {
			covered[node] = covered[node] || before[node]
		}
	}
	return found
}

func functionNode(f trigger.Function) string { return "function " + string(f) }
func bucketNode(b trigger.Bucket) string     { return "bucket " + string(b) }

// successors returns what each node leads to.
func (a *Application) successors() map[string][]string {
	next := map[string][]string{}
	for _, f := range a.Functions {
		for _, b := range a.Puts[f] {
			next[functionNode(f)] = append(next[functionNode(f)], bucketNode(b))
		}
	}
	for _, t := range a.Triggers {
		next[bucketNode(t.Bucket)] = append(next[bucketNode(t.Bucket)], functionNode(t.Function))
	}
	return next
}

func reversed(next map[string][]string) map[string][]string {
	before := make(map[string][]string, len(next))
	for from, list := range next {
		for _, to := range list {
			before[to] = append(before[to], from)
		}
	}
	return before
}

// reach returns the nodes that a node leads to.
func reach(next map[string][]string, start string) map[string]bool {
	seen := map[string]bool{}
	for queue := slices.Clone(next[start]); len(queue) > 0; queue = queue[1:] {
		if node := queue[0]; !seen[node] {
			seen[node] = true
			queue = append(queue, next[node]...)
		}
	}
	return seen
}

// shortest returns a shortest way from a node to itself, nil if there is none.
func shortest(next map[string][]string, start string) []string {
	from := map[string]string{}
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		for _, node := range next[queue[0]] {
			if _, seen := from[node]; seen {
				continue
			}
			from[node] = queue[0]
			if node == start {
				return way(from, start)
			}
			queue = append(queue, node)
		}
	}
	return nil
}

// way follows the nodes back from the end of a cycle to its start.
func way(from map[string]string, start string) []string {
	nodes := []string{start}
	for node := from[start]; node != start; node = from[node] {
		nodes = append(nodes, node)
	}
	nodes = append(nodes, start)
	slices.Reverse(nodes)
	return nodes
}
