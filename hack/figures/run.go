package figures

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Run is one run of a benchmark program that measures in steps.
type Run struct {
	Cache  string // directory that keeps built images
	Xylem  string // the binary
	Rounds int    // how often each thing is measured

	name           string
	rows           []Row
	out, doc, only string
	result         map[string]Figure
}

// NewRun returns the run of the program with this name, whose table in the benchmarks document has these rows.
func NewRun(name string, rows []Row) *Run {
	return &Run{name: name, rows: rows, result: map[string]Figure{}}
}

// Step is a part of a run that can be done alone.
type Step struct {
	Name string
	Do   func(context.Context) error
}

// Main is the program: it reads the flags, does the steps, prints the table and writes the figures, and ends the process with exit
// code 1 if anything fails.
func (r *Run) Main(steps ...Step) {
	flag.StringVar(&r.Cache, "cache", "hack/cache", "directory that keeps built images")
	flag.StringVar(&r.out, "out", "hack/out/"+r.name+".json", "file for the figures")
	flag.StringVar(&r.doc, "doc", "docs/benchmarks.md", "document whose table is rewritten when everything was measured; empty for none")
	flag.StringVar(&r.Xylem, "xylem", "bin/xylem", "the binary")
	flag.StringVar(&r.only, "only", "", "steps to do, of "+strings.Join(names(steps), ",")+" (default all)")
	flag.IntVar(&r.Rounds, "n", 3, "how often each thing is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := r.do(ctx, steps); err != nil {
		fmt.Fprintln(os.Stderr, r.name+":", err)
		os.Exit(1)
	}
}

func names(steps []Step) (names []string) {
	for _, s := range steps {
		names = append(names, s.Name)
	}
	return names
}

func (r *Run) do(ctx context.Context, steps []Step) error {
	chosen := names(steps)
	if r.only != "" {
		chosen = strings.Split(r.only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(names(steps), name) {
			return fmt.Errorf("there is no step %q, only %s", name, strings.Join(names(steps), ", "))
		}
	}
	for _, s := range steps {
		if !slices.Contains(chosen, s.Name) {
			continue
		}
		fmt.Printf("== %s\n", s.Name)
		if err := s.Do(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return r.publish()
}

// publish prints the table and writes the figures; the document is rewritten when everything was measured.
func (r *Run) publish() error {
	measured := InOrder(r.rows, r.result)
	table := Table(r.rows, measured)
	fmt.Printf("\n%s\n", table)
	if err := WriteFigures(r.out, measured); err != nil {
		return err
	}
	if r.doc == "" || r.only != "" {
		return nil
	}
	return RewriteDoc(r.doc, r.name, table, time.Now())
}

// Add notes figures and prints them.
func (r *Run) Add(list ...Figure) {
	for _, f := range list {
		r.result[f.Name] = f
		fmt.Printf("   %s: %.4g %s (%d: %.4g to %.4g)\n", f.Name, f.Value, f.Unit, f.N, f.Min, f.Max)
	}
}
