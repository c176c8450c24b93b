package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/figures"
)

const (
	// clients download the blob at the same time, each as slowly as pieceBytes in pieceEvery: none is done before the measurement is.
	clients    = 200
	pieceBytes = 256 << 10
	pieceEvery = 500 * time.Millisecond
	// underWay is how long they are watched after the blob is here.
	underWay = 10 * time.Second
)

// memory measures the proxy's memory while many clients download one blob: while it arrives from the registry, and afterwards.
func (b *bench) memory(ctx context.Context) error {
	var peaks []float64
	for range b.Rounds {
		peak, err := b.memoryOnce(ctx)
		if err != nil {
			return err
		}
		peaks = append(peaks, peak)
	}
	b.Add(figures.Summary("rss_200_downloads_bytes", "B", peaks))
	return nil
}

func (b *bench) memoryOnce(ctx context.Context) (peak float64, err error) {
	a, err := b.startAlone(ctx, blobBytes)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	during, stop := context.WithCancel(ctx)
	defer stop()
	transport := &http.Transport{DisableCompression: true, ReadBufferSize: 4 << 10}
	defer transport.CloseIdleConnections()
	var g errgroup.Group
	var begun atomic.Int32
	for range clients {
		g.Go(func() error { return a.slowly(during, transport, &begun) })
	}
	peak, err = a.watch(ctx, &begun)
	stop()
	return peak, errors.Join(err, g.Wait())
}

// slowly downloads the blob until ctx ends.
func (a *alone) slowly(ctx context.Context, transport http.RoundTripper, begun *atomic.Int32) error {
	resp, err := get(ctx, transport, a.blobURL(a.base))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	tick := time.NewTicker(pieceEvery)
	defer tick.Stop()
	buf := make([]byte, pieceBytes)
	for first := true; ; first = false {
		for n := 0; n < len(buf); {
			m, err := resp.Body.Read(buf[n:])
			if ctx.Err() != nil {
				return nil
			}
			if n += m; err != nil {
				return fmt.Errorf("after %d bytes: %w", n, err)
			}
		}
		if first {
			begun.Add(1)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// watch returns the largest resident memory of the proxy until all clients have been at it for a while with the blob kept.
func (a *alone) watch(ctx context.Context, begun *atomic.Int32) (peak float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var since time.Time // when all were under way and the blob here
	for since.IsZero() || time.Since(since) < underWay {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("%d of %d clients got something: %w", begun.Load(), clients, ctx.Err())
		}
		rss, err := residentBytes(a.proxy.Pid())
		if err != nil {
			return 0, err
		}
		peak = max(peak, rss)
		if _, here := a.kept(); here == nil && since.IsZero() && begun.Load() == clients {
			since = time.Now()
			fmt.Printf("   blob is here: %.0f MiB at most until now\n", peak/(1<<20))
		}
	}
	return peak, nil
}

// residentBytes reads what the kernel says of a process.
func residentBytes(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib * 1024, nil
		}
	}
	return 0, errors.New("the kernel does not say how much memory the proxy has")
}
