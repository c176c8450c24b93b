// Command bench-hop measures one hop of a function tree over loopback, of raw TLS 1.3 with the same bytes in the same run:
//
//	go run ./hack/bench-hop
//
// This process serves the blocks of an image, as a parent in the tree and over raw TLS; a second one receives them, verified,
// in the default configuration. Ways take turns, each followed by raw TLS. It prints a table and writes
// hack/out/bench-hop.json.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
)

type options struct {
	out, profiles  string
	ways           string
	rounds, blocks int
	receive        bool
}

func main() {
	var opts options
	flag.StringVar(&opts.out, "out", "hack/out/bench-hop.json", "file for the figures")
	flag.StringVar(&opts.profiles, "profiles", "", "directory for processor profiles of both processes; empty for none")
	flag.StringVar(&opts.ways, "ways", "hop,hop_asked", "what is measured")
	flag.IntVar(&opts.rounds, "n", 9, "how often each way is measured")
	flag.IntVar(&opts.blocks, "blocks", 1500, "blocks of the image, of about 180 KiB stored")
	flag.BoolVar(&opts.receive, "receive", false, "be the receiving process")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := serve
	if opts.receive {
		run = receive
	}
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "bench-hop:", err)
		os.Exit(1)
	}
}

// serve is the process that serves, and has the other one receive.
func serve(ctx context.Context, opts options) (err error) {
	if opts.profiles != "" {
		if err := os.MkdirAll(opts.profiles, 0o755); err != nil {
			return err
		}
	}
	blob, err := newBlob(opts.blocks)
	if err != nil {
		return err
	}
	raw, err := serveTLS(blob.stored)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	parent, err := startParent(ctx, blob)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.close()) }()
	other, err := startReceiver(ctx, opts, setup{Blob: blob.description(), TLS: raw.Addr().String(), Parent: parent.address(), Profiles: opts.profiles})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, other.close()) }()
	b := &bench{other: other, ways: strings.Split(opts.ways, ","), bytes: float64(len(blob.stored)), samples: map[string][]float64{}}
	stop, err := profile(opts.profiles, "serve")
	if err != nil {
		return err
	}
	defer stop()
	for round := range opts.rounds + 1 {
		if round == 0 {
			fmt.Println("warming up")
		}
		if err := b.round(round > 0); err != nil {
			return err
		}
	}
	measured := b.figures()
	table(measured)
	return figures.WriteFigures(opts.out, measured)
}

// bench is one run of all ways.
type bench struct {
	other   *receiver
	ways    []string
	bytes   float64
	samples map[string][]float64
}

// round measures each way once, each beside raw TLS.
func (b *bench) round(counts bool) error {
	for _, way := range b.ways {
		ours, err := b.measure(way)
		if err != nil {
			return err
		}
		raw, err := b.measure("tls")
		if err != nil {
			return err
		}
		if counts {
			b.add(way+"_vs_tls", float64(raw.Took)/float64(ours.Took))
			b.add(way+"_rate", b.bytes/ours.Took.Seconds()/1e6)
			b.add(way+"_cpu", ours.CPU.Seconds()/b.bytes*(1<<30))
			b.add("tls_rate", b.bytes/raw.Took.Seconds()/1e6)
			b.add("tls_cpu", raw.CPU.Seconds()/b.bytes*(1<<30))
		}
	}
	return nil
}

func (b *bench) add(name string, sample float64) { b.samples[name] = append(b.samples[name], sample) }

// measure has the blocks received in one way. CPU is of both processes.
func (b *bench) measure(way string) (measured, error) {
	before := processorTime()
	m, err := b.other.do(way)
	m.CPU += processorTime() - before
	return m, err
}

type name struct{ name, unit, what string }

var names = []name{
	{"hop_vs_tls", "ratio", "pushed and verified, of the speed of raw TLS 1.3"},
	{"hop_asked_vs_tls", "ratio", "the same, asked for by 32 readers"},
	{"hop_rate", "MB/s", "pushed and verified"},
	{"hop_asked_rate", "MB/s", "asked for"},
	{"tls_rate", "MB/s", "raw TLS 1.3"},
	{"hop_cpu", "s/GiB", "processor time of both ends, pushed and verified"},
	{"hop_asked_cpu", "s/GiB", "processor time of both ends, asked for"},
	{"tls_cpu", "s/GiB", "processor time of both ends, raw TLS 1.3"},
}

func (b *bench) figures() (list []figures.Figure) {
	for _, n := range names {
		if len(b.samples[n.name]) > 0 {
			list = append(list, figures.Summary(n.name, n.unit, b.samples[n.name]))
		}
	}
	return list
}

// table prints figures in Markdown.
func table(figures []figures.Figure) {
	fmt.Print("| what | name | median | min | max | n |\n|---|---|---|---|---|---|\n")
	for _, f := range figures {
		what := names[slices.IndexFunc(names, func(n name) bool { return n.name == f.Name })].what
		fmt.Printf("| %s | `%s` | %.2f %s | %.2f | %.2f | %d |\n", what, f.Name, f.Value, f.Unit, f.Min, f.Max, f.N)
	}
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // cannot fail with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// profile begins a processor profile; none if dir is empty.
func profile(dir, name string) (stop func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, name+".pprof"))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
