// Command bench-tree measures the function trees: in a lab of hosts with shaped links, in simulation, one hop, and the topology alone.
//
//	go run ./hack/bench-tree          as root, after make build; `make bench-tree` does both
//	go run ./hack/bench-tree -only lab8,hop
//
// It prints a table, writes hack/out/bench-tree.json and rewrites the table in docs/benchmarks.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
)

type options struct {
	cache, out, doc, xylem string
	only                   string
	rounds                 int
}

func main() {
	var opts options
	flag.StringVar(&opts.cache, "cache", "hack/cache", "directory that keeps built images")
	flag.StringVar(&opts.out, "out", "hack/out/bench-tree.json", "file for the figures")
	flag.StringVar(&opts.doc, "doc", "docs/benchmarks.md", "document whose table is rewritten when everything was measured; empty for none")
	flag.StringVar(&opts.xylem, "xylem", "bin/xylem", "the binary")
	flag.StringVar(&opts.only, "only", "", "steps to do, of "+strings.Join(stepNames(), ",")+" (default all)")
	flag.IntVar(&opts.rounds, "n", 3, "how often each thing is measured in the lab")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "bench-tree:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	options
	result map[string]figures.Figure
}

// steps are the parts of a run.
var steps = []struct {
	name string
	do   func(*bench, context.Context) error
}{
	{"ops", (*bench).operations}, {"hop", (*bench).hop}, {"sim", (*bench).simulation},
	{"lab8", (*bench).lab8}, {"lab16", (*bench).lab16}, {"crash", (*bench).crashes}, {"many", (*bench).manyImages},
}

func stepNames() (names []string) {
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

func run(ctx context.Context, opts options) error {
	b := &bench{options: opts, result: map[string]figures.Figure{}}
	chosen := stepNames()
	if opts.only != "" {
		chosen = strings.Split(opts.only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(stepNames(), name) {
			return fmt.Errorf("there is no step %q, only %s", name, strings.Join(stepNames(), ", "))
		}
	}
	for _, s := range steps {
		if !slices.Contains(chosen, s.name) {
			continue
		}
		fmt.Printf("== %s\n", s.name)
		if err := s.do(b, ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	measured := figures.InOrder(rows, b.result)
	table := figures.Table(rows, measured)
	fmt.Printf("\n%s\n", table)
	if err := figures.WriteFigures(opts.out, measured); err != nil {
		return err
	}
	if opts.doc == "" || opts.only != "" {
		return nil
	}
	return figures.RewriteDoc(opts.doc, "bench-tree", table, time.Now())
}

func (b *bench) add(list ...figures.Figure) {
	for _, f := range list {
		b.result[f.Name] = f
		fmt.Printf("   %s: %.4g %s (%d: %.4g to %.4g)\n", f.Name, f.Value, f.Unit, f.N, f.Min, f.Max)
	}
}

// hop measures one edge between two processes.
func (b *bench) hop(ctx context.Context) error {
	return b.program(ctx, "run", "./hack/bench-hop", "-out")
}

// simulation measures a thousand agents on virtual time.
func (b *bench) simulation(ctx context.Context) error {
	return b.program(ctx, "test", "./tree/treesim", "-count=1", "-timeout=60m", "-run=TestFigures", "-figures")
}

// program takes over the figures that another program of the repository writes to the file that is its last argument.
func (b *bench) program(ctx context.Context, args ...string) error {
	dir, err := os.MkdirTemp("", "bench-tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "figures.json")
	cmd := exec.CommandContext(ctx, "go", append(args, file)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var list []figures.Figure
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("figures of go %s: %w", strings.Join(args, " "), err)
	}
	b.add(list...)
	return nil
}
