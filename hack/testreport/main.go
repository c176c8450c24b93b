// Command testreport runs the tests and says in one line how many passed, failed and were skipped:
//
//	testreport [-fuzztime D] [-- GO-TEST-ARGUMENTS]
//
// It runs `go test -json` with the arguments, prints a line per package and the output of what failed, then runs every fuzz
// target of the module for the -fuzztime. A skipped test is a failure: the tests need root and real tools, and one that
// does not run proves nothing. The last line is `N passed, N failed, N skipped`, with subtests counted.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"time"
)

func main() {
	fuzzTime := flag.String("fuzztime", "", "how long (10s) or how often (1000x) to run each fuzz target; empty runs none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	report := NewReport(os.Stdout)
	err := run(ctx, report, flag.Args(), *fuzzTime)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	fmt.Println(report.Summary())
	if err != nil || !report.OK() {
		os.Exit(1)
	}
}

func run(ctx context.Context, report *Report, args []string, fuzzTime string) error {
	if len(args) > 0 {
		if err := goTest(ctx, report, args...); err != nil {
			return err
		}
	}
	if fuzzTime == "" {
		return nil
	}
	targets, err := fuzzTargets(ctx)
	if err != nil {
		return err
	}
	for _, t := range targets {
		report.label = " " + t.Name
		if err := goTest(ctx, report, "-run=^$", "-fuzz=^"+t.Name+"$", "-fuzztime="+fuzzTime, t.Package); err != nil {
			return err
		}
	}
	return nil
}

// goTest runs go test and feeds its events to the report. A failed test is the report's business, not an error.
func goTest(ctx context.Context, report *Report, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	read := make(chan error, 1)
	go func() { read <- report.Read(r) }()
	exit := cmd.Wait()
	w.Close()
	if err := <-read; err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if exit != nil && report.OK() {
		return fmt.Errorf("go test %v: %w", args, exit)
	}
	return nil
}
