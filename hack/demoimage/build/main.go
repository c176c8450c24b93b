// Command build makes the demo image, or finds it in the cache, and prints where it is and how large.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/xylem-project/xylem/hack/demoimage"
)

func main() {
	cache := flag.String("cache", "hack/cache", "directory that keeps the image")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	image, err := demoimage.Build(ctx, *cache, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("oci:%s:%s  %d layers, %.2f GB unpacked, %.0f MB stored\n",
		image.Layout, demoimage.Tag, image.Layers, float64(image.Unpacked)/1e9, float64(image.Stored)/1e6)
}
