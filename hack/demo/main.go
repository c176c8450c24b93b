// Command demo shows what xylem is for: it starts a container of a real image of more than a gigabyte from a real registry,
// as containerd does it today and through xylem, and prints how long a user waits for the program's first line.
//
//	go run ./hack/demo          as root, after make build; `make demo` does both
//
// Everything runs in a temporary directory and on loopback, and is removed at the end. Only the image is kept, in hack/cache.
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

	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/nodelab"
)

type options struct {
	cache, out, xylem string
	rounds            int
}

func main() {
	var opts options
	flag.StringVar(&opts.cache, "cache", "hack/cache", "directory that keeps the built image")
	flag.StringVar(&opts.out, "out", "hack/out/demo.json", "file for the figures")
	flag.StringVar(&opts.xylem, "xylem", "bin/xylem", "the binary")
	flag.IntVar(&opts.rounds, "n", 3, "how often each start is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run does the demo; what it starts it also removes, whatever happens.
func run(ctx context.Context, opts options) (err error) {
	fmt.Println("Preparing the image: Debian with Python, NumPy, SciPy, pandas and scikit-learn (minutes the first time, then kept).")
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
	r := report{image: image}
	plain, err := pushDemo(ctx, lab, image, "demo:latest")
	if err != nil {
		return err
	}
	fmt.Println("Converting it with `xylem convert --push`.")
	if r.conversion, err = lab.Convert(ctx, plain, "--push"); err != nil {
		return err
	}
	fmt.Println("Recording what one start reads with `xylem record`, and converting a copy of it with `xylem convert --push --profile`.")
	profiled, err := profile(ctx, lab, image, plain)
	if err != nil {
		return err
	}
	fmt.Printf("Starting each %d times, on a containerd that has nothing of it and with an empty page cache.\n", opts.rounds)
	native := func(ctx context.Context) error {
		took, err := nodelab.WarmNative(ctx, image.Rootfs, image.Command...)
		r.native = append(r.native, took)
		return err
	}
	measured, err := lab.CompareStarts(ctx, opts.rounds, native,
		nodelab.Contender{Snapshotter: nodelab.Overlayfs, Ref: plain}, nodelab.Contender{Snapshotter: nodelab.Xylem, Ref: plain},
		nodelab.Contender{Snapshotter: nodelab.Xylem, Ref: profiled})
	if err != nil {
		return err
	}
	r.overlayfs, r.xylem, r.profiled = measured[0], measured[1], measured[2]
	r.print(os.Stdout)
	return figures.WriteFigures(opts.out, r.figures())
}

// profile records a start of the image ref, and returns the reference of a copy that is laid out by it.
func profile(ctx context.Context, lab *nodelab.Lab, image *demoimage.Image, ref string) (string, error) {
	file := lab.Path("profile")
	if err := lab.Record(ctx, ref, file); err != nil {
		return "", err
	}
	copied, err := pushDemo(ctx, lab, image, "profiled:latest")
	if err != nil {
		return "", err
	}
	_, err = lab.Convert(ctx, copied, "--push", "--profile", file)
	return copied, err
}

func pushDemo(ctx context.Context, lab *nodelab.Lab, image *demoimage.Image, repository string) (string, error) {
	v1, err := image.Image()
	if err != nil {
		return "", err
	}
	fmt.Printf("Pushing it (%d layers, %.2f GB, %.0f MB compressed) to a registry on %s.\n",
		image.Layers, float64(image.Unpacked)/1e9, float64(image.Stored)/1e6, lab.Host())
	begin := time.Now()
	ref, err := lab.Push(ctx, repository, v1)
	lab.Logf("pushed in %.1f s", time.Since(begin).Seconds())
	return ref, err
}
