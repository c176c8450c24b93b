// Command bench-node measures what a node of xylem costs and gains, on the demo image, against containerd's overlayfs and a
// native EROFS image on the same machine in the same run:
//
//	go run ./hack/bench-node          as root, after make build; `make bench-node` does both
//
// It prints a table, writes hack/out/bench-node.json and rewrites the table in docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/nodelab"
)

type options struct {
	cache, out, doc, xylem string
	rounds                 int
}

func main() {
	var opts options
	flag.StringVar(&opts.cache, "cache", "hack/cache", "directory that keeps the built image")
	flag.StringVar(&opts.out, "out", "hack/out/bench-node.json", "file for the figures")
	flag.StringVar(&opts.doc, "doc", "docs/benchmarks.md", "document whose table is rewritten; empty for none")
	flag.StringVar(&opts.xylem, "xylem", "bin/xylem", "the binary")
	flag.IntVar(&opts.rounds, "n", 5, "how often each thing is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "bench-node:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) (err error) {
	image, err := demoimage.Build(ctx, opts.cache, os.Stdout)
	if err != nil {
		return err
	}
	lab, err := nodelab.Start(ctx, nodelab.Config{Xylem: opts.xylem, Log: os.Stdout})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() != nil { // whatever failed, failed because of that
			err = errors.New("interrupted")
		}
		err = errors.Join(err, lab.Close())
	}()
	b := bench{lab: lab, image: image, rounds: opts.rounds, result: map[string]figures.Figure{}}
	if err := b.all(ctx); err != nil {
		return err
	}
	measured := figures.InOrder(rows, b.result)
	fmt.Printf("\n%s\n", figures.Table(rows, measured))
	if err := figures.WriteFigures(opts.out, measured); err != nil {
		return err
	}
	if opts.doc == "" {
		return nil
	}
	return figures.RewriteDoc(opts.doc, "bench-node", figures.Table(rows, measured), time.Now())
}

// bench is one run of all measurements, in the order in which they need each other.
type bench struct {
	lab    *nodelab.Lab
	image  *demoimage.Image
	source v1.Image // the same, to be pushed
	rounds int
	result map[string]figures.Figure

	plain, profiled string // references: converted without and with a profile
}

func (b *bench) add(figures ...figures.Figure) {
	for _, f := range figures {
		b.result[f.Name] = f
		b.lab.Logf("%s: %.4g %s (%d: %.4g to %.4g)", f.Name, f.Value, f.Unit, f.N, f.Min, f.Max)
	}
}

func (b *bench) all(ctx context.Context) (err error) {
	if b.source, err = b.image.Image(); err != nil {
		return err
	}
	if b.plain, err = b.lab.Push(ctx, "demo:latest", b.source); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{b.convert, b.profile, b.starts, b.reads, b.idle} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// convert measures the conversion of the image from registry to registry; nothing is kept from one to the next.
func (b *bench) convert(ctx context.Context) error {
	var seconds, rss []float64
	for i := range b.rounds {
		args := []string{"--push"}
		if i > 0 { // the source's repository has the blobs now
			args = []string{"--to", fmt.Sprintf("%s/copy%d", b.lab.Host(), i)}
		}
		c, err := b.lab.Convert(ctx, b.plain, args...)
		if err != nil {
			return err
		}
		seconds = append(seconds, c.Time.Seconds())
		rss = append(rss, float64(c.RSS))
	}
	b.add(figures.Summary("convert_seconds", "s", seconds), figures.Summary("convert_rss_bytes", "B", rss))
	return nil
}

// profile records one start and converts the image again, with what it read laid out first.
func (b *bench) profile(ctx context.Context) (err error) {
	file := b.lab.Path("profile")
	if err := b.lab.Record(ctx, b.plain, file); err != nil {
		return err
	}
	if b.profiled, err = b.lab.Push(ctx, "profiled:latest", b.source); err != nil {
		return err
	}
	_, err = b.lab.Convert(ctx, b.profiled, "--push", "--profile", file)
	return err
}

// starts compares cold and warm starts.
func (b *bench) starts(ctx context.Context) error {
	var native []time.Duration
	reference := func(ctx context.Context) error {
		took, err := nodelab.WarmNative(ctx, b.image.Rootfs, b.image.Command...)
		native = append(native, took)
		return err
	}
	measured, err := b.lab.CompareStarts(ctx, b.rounds, reference,
		nodelab.Contender{Snapshotter: nodelab.Overlayfs, Ref: b.plain},
		nodelab.Contender{Snapshotter: nodelab.Xylem, Ref: b.plain},
		nodelab.Contender{Snapshotter: nodelab.Xylem, Ref: b.profiled})
	if err != nil {
		return err
	}
	size, err := blockImageSize(ctx, b.plain)
	if err != nil {
		return err
	}
	overlayfs, plain, profiled := measured[0], measured[1], measured[2]
	seconds := figures.Seconds
	b.add(
		figures.Summary("overlayfs_cold_seconds", "s", seconds(overlayfs.Cold)),
		figures.Summary("cold_seconds", "s", seconds(plain.Cold)),
		figures.Ratio("cold_vs_overlayfs", seconds(plain.Cold), seconds(overlayfs.Cold)),
		figures.Ratio("cold_vs_warm_native", seconds(plain.Cold), seconds(native)),
		figures.Summary("cold_seconds_profiled", "s", seconds(profiled.Cold)),
		figures.Ratio("cold_vs_overlayfs_profiled", seconds(profiled.Cold), seconds(overlayfs.Cold)),
		figures.Summary("overlayfs_warm_seconds", "s", seconds(overlayfs.Warm)),
		figures.Summary("warm_seconds", "s", seconds(plain.Warm)),
		figures.Ratio("warm_vs_overlayfs", seconds(plain.Warm), seconds(overlayfs.Warm)),
		figures.Summary("native_warm_seconds", "s", seconds(native)),
		figures.Ratio("fetched_fraction", plain.Fetched, repeat(size, len(plain.Fetched))),
		figures.Ratio("fetched_fraction_profiled", profiled.Fetched, repeat(size, len(profiled.Fetched))),
	)
	return nil
}

func repeat(x float64, n int) []float64 {
	s := make([]float64, n)
	for i := range s {
		s[i] = x
	}
	return s
}
