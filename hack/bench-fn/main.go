// Command bench-fn measures what calls of functions cost and gain: how long invocations and starts take, in turn with what they are compared with, what a
// placement decision takes, and what it is worth to the caches of instances.
//
//	go run ./hack/bench-fn [-graph FILE]          or `make bench-fn GRAPH=FILE`
//
// FILE is the friendship graph socfb-Reed98 of networkrepository.com, a line for each pair of friends; without it the replay runs on a synthetic graph
// of the same size. It prints a table, writes hack/out/bench-fn.json and rewrites the table in docs/benchmarks.md.
package main

import (
	"context"
	"flag"
	"slices"

	"github.com/xylem-project/xylem/hack/figures"
)

func main() {
	b := &bench{Run: figures.NewRun("bench-fn", slices.Concat(lambdaRows, endToEndRows, coldRows, burstRows, pickRows, replayRows()))}
	flag.StringVar(&b.graph, "graph", "", "edges of the graph socfb-Reed98; empty for a synthetic one")
	b.Main(
		figures.Step{Name: "lambda", Do: func(ctx context.Context) error { return measureLambda(ctx, b.Run) }},
		figures.Step{Name: "e2e", Do: b.endToEnd},
		figures.Step{Name: "cold", Do: func(ctx context.Context) error { return measureCold(ctx, b.Run) }},
		figures.Step{Name: "burst", Do: b.burst},
		figures.Step{Name: "pick", Do: b.pick}, figures.Step{Name: "replay", Do: b.replay})
}

// bench is one run.
type bench struct {
	*figures.Run
	graph string
}
