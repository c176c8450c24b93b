// Command demo shows what xylem is for: eight hosts, each on a link of 100 Mbit/s like the registry's, start the same container in the
// same moment; first as containerd does it today, then through xylem. It prints how long each host waits for the program's
// first line, what that cost the registry, and the tree by which the hosts fed each other.
//
//	go run ./hack/demo          as root, after make build; `make demo` does both
//
// The hosts are network namespaces of this machine, with a containerd and an agent each. Everything runs in a temporary directory and
// is removed at the end. Only the image is kept, in hack/cache.
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
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/hack/nodelab"
)

type options struct {
	cache, out, xylem string
	hosts             int
	rate              lab.Rate
}

func main() {
	opts := options{rate: 100 * lab.Mbit}
	flag.StringVar(&opts.cache, "cache", "hack/cache", "directory that keeps the built image")
	flag.StringVar(&opts.out, "out", "hack/out/demo.json", "file for the figures")
	flag.StringVar(&opts.xylem, "xylem", "bin/xylem", "the binary")
	flag.IntVar(&opts.hosts, "hosts", 8, "how many hosts")
	flag.TextVar(&opts.rate, "rate", opts.rate, "of every link, the registry's too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, opts)
	if err != nil && ctx.Err() != nil { // whatever failed, failed because of that
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run does the demo; what it starts it also removes, whatever happens.
func run(ctx context.Context, opts options) error {
	fmt.Println("Preparing the image: Debian with Python (minutes the first time, then kept).")
	whole, err := demoimage.Build(ctx, opts.cache, os.Stdout)
	if err != nil {
		return err
	}
	image, err := whole.Python()
	if err != nil {
		return err
	}
	r := report{hosts: opts.hosts, rate: opts.rate}
	if r.image, err = storedBytes(image); err != nil {
		return err
	}
	fmt.Printf("Today: %d hosts pull it from the registry (%.0f MB, every link %s) and start it with overlayfs.\n", opts.hosts, float64(r.image)/1e6, opts.rate)
	if r.today, err = today(ctx, opts, image); err != nil {
		return err
	}
	fmt.Printf("   the last host had the program's first line after %.1f s\n", r.today.last().Seconds())
	fmt.Println("xylem: the same hosts, the same image, converted once; agents on the hosts, and a scheduler.")
	if r.xylem, err = withXylem(ctx, opts, image); err != nil {
		return err
	}
	r.print(os.Stdout)
	return figures.WriteFigures(opts.out, r.figures())
}

func storedBytes(image v1.Image) (total int64, err error) {
	manifest, err := image.Manifest()
	if err != nil {
		return 0, err
	}
	for _, l := range manifest.Layers {
		total += l.Size
	}
	return total, nil
}

// measured is how one way of starting went.
type measured struct {
	waits  []time.Duration // by host, from the command to the program's first line
	egress int64           // bytes that left the registry
	tree   string          // as `xylem tree` drew it
}

func today(ctx context.Context, opts options, image v1.Image) (m measured, err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: opts.hosts, Link: lab.Link{Up: opts.rate, Down: opts.rate}, Containerd: true, Xylem: opts.xylem})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	ref, err := l.Services.Push(ctx, "demo:latest", image)
	if err != nil {
		return m, err
	}
	return startAll(ctx, l, nodelab.Overlayfs, ref)
}

func withXylem(ctx context.Context, opts options, image v1.Image) (m measured, err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: opts.hosts, Link: lab.Link{Up: opts.rate, Down: opts.rate}, Containerd: true, Agents: true, Scheduler: true, Xylem: opts.xylem})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	ref, err := l.Services.Push(ctx, "demo:latest", image)
	if err != nil {
		return m, err
	}
	conversion, err := l.Services.Convert(ctx, ref, "--push")
	if err != nil {
		return m, err
	}
	fmt.Printf("   converted in %.1f s\n", conversion.Time.Seconds())
	if m, err = startAll(ctx, l, nodelab.Xylem, ref); err != nil {
		return m, err
	}
	m.tree, err = l.Hosts()[0].Node.Xylem(ctx, "tree", ref)
	return m, err
}

// startAll starts a container on all hosts in the same moment.
func startAll(ctx context.Context, l *lab.Lab, snapshotter, ref string) (measured, error) {
	m := measured{waits: make([]time.Duration, len(l.Hosts()))}
	if err := nodelab.DropCaches(); err != nil {
		return m, err
	}
	before, err := l.Registry().Traffic(ctx)
	if err != nil {
		return m, err
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, h := range l.Hosts() {
		g.Go(func() (err error) {
			m.waits[i], _, err = h.Node.Run(gctx, snapshotter, ref)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return m, err
	}
	after, err := l.Registry().Traffic(ctx)
	m.egress = after.Sub(before).Sent
	return m, err
}
