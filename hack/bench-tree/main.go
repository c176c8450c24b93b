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
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
)

func main() {
	b := &bench{figures.NewRun("bench-tree", rows)}
	b.Main(figures.Step{Name: "ops", Do: b.operations}, figures.Step{Name: "hop", Do: b.hop}, figures.Step{Name: "sim", Do: b.simulation},
		figures.Step{Name: "lab8", Do: b.lab8}, figures.Step{Name: "lab16", Do: b.lab16}, figures.Step{Name: "crash", Do: b.crashes},
		figures.Step{Name: "many", Do: b.manyImages})
}

// bench is one run.
type bench struct{ *figures.Run }

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
	b.Add(list...)
	return nil
}
