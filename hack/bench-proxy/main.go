// Command bench-proxy measures the registry proxy: an image that nobody converted on eight hosts at once, and what the proxy costs on one.
//
//	go run ./hack/bench-proxy          as root, after make build; `make bench-proxy` does both
//
// It prints a table, writes hack/out/bench-proxy.json and rewrites the table in docs/benchmarks.md.
package main

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
	flag.StringVar(&opts.out, "out", "hack/out/bench-proxy.json", "file for the figures")
	flag.StringVar(&opts.doc, "doc", "docs/benchmarks.md", "document whose table is rewritten when everything was measured; empty for none")
	flag.StringVar(&opts.xylem, "xylem", "bin/xylem", "the binary")
	flag.StringVar(&opts.only, "only", "", "steps to do, of "+strings.Join(stepNames(), ",")+" (default all)")
	flag.IntVar(&opts.rounds, "n", 3, "how often each thing is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "bench-proxy:", err)
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
	{"lab8", (*bench).lab8},
	{"warm", (*bench).warm},
	{"memory", (*bench).memory},
	{"manifest", (*bench).manifest},
}

// rows are the figures in the order of the table.
var rows = []figures.Row{
	figures.AtMost("lab8_plain_t_over_lb", "8 hosts at 100 Mbit/s pull an image that nobody converted, until the last has it, of LB", "<= 1.30", 1.30),
	figures.AtMost("lab8_plain_egress_over_f", "bytes that left the registry meanwhile, of the image", "<= 1.05", 1.05),
	figures.Shown("lab8_plain_direct_t_over_lb", "the same without xylem, each host from the registry, of LB"),
	figures.AtLeast("warm_blob_vs_nginx", "speed of a blob of 1 GiB that the proxy keeps, over loopback, of nginx's with the same file", ">= 0.80", 0.8),
	figures.Shown("warm_blob_bytes_per_second", "that speed"),
	figures.Shown("nginx_bytes_per_second", "nginx's"),
	figures.AtMost("rss_200_downloads_bytes", "proxy's memory with 200 downloads of a blob of 1 GiB at once, at its highest", "<= 64 MiB", 64<<20),
	figures.AtMost("manifest_p50_added_seconds", "a manifest that the proxy keeps takes longer than from docker-registry, medians", "<= 1 ms", 1e-3),
	figures.Shown("manifest_p50_seconds", "how long that is"),
	figures.Shown("registry_manifest_p50_seconds", "docker-registry's time"),
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
	return figures.RewriteDoc(opts.doc, "bench-proxy", table, time.Now())
}

func (b *bench) add(list ...figures.Figure) {
	for _, f := range list {
		b.result[f.Name] = f
		fmt.Printf("   %s: %.4g %s (%d: %.4g to %.4g)\n", f.Name, f.Value, f.Unit, f.N, f.Min, f.Max)
	}
}
