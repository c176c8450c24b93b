package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
)

// rate is that of all links of the lab, the registry's too.
const rate = 100 * lab.Mbit

// fleet is a lab whose registry has an image, converted.
type fleet struct {
	*lab.Lab
	ref string
	// plain and blocks are the bytes of the image's compressed layers, and of its block image.
	plain, blocks int64
}

// up makes a fleet in a directory, "" for the lab's default. Agents fetch everything, so that "all have all" comes to pass.
func (b *bench) up(ctx context.Context, dir string, hosts, stripes int) (_ *fleet, err error) {
	l, err := lab.Up(ctx, lab.Config{Dir: dir, Hosts: hosts, Link: lab.Link{Up: rate, Down: rate, Congestion: "cubic"}, Agents: true, AgentConfig: "fill = true\n", Scheduler: true, Stripes: stripes, Xylem: b.Xylem})
	if err != nil {
		return nil, err
	}
	f := &fleet{Lab: l}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down())
		}
	}()
	image, err := demoimage.Build(ctx, b.Cache, os.Stdout)
	if err != nil {
		return nil, err
	}
	python, err := image.Python()
	if err != nil {
		return nil, err
	}
	layers, err := python.Layers()
	if err != nil {
		return nil, err
	}
	for _, layer := range layers {
		size, err := layer.Size()
		if err != nil {
			return nil, err
		}
		f.plain += size
	}
	if f.ref, err = l.Services.Push(ctx, "python:1", python); err != nil {
		return nil, err
	}
	if _, err := l.Services.Convert(ctx, f.ref, "--push"); err != nil {
		return nil, err
	}
	f.blocks, err = f.size(ctx)
	return f, err
}

// size returns the stored bytes of the block image, as `xylem inspect` tells them.
func (f *fleet) size(ctx context.Context) (int64, error) {
	var info struct {
		StoredBytes   int64 `json:"storedBytes"`
		MetadataBytes int64 `json:"metadataBytes"`
	}
	out, err := f.Services.Run(ctx, "inspect", "--output", "json", f.ref)
	if err != nil {
		return 0, err
	}
	err = json.Unmarshal([]byte(out), &info)
	return info.StoredBytes + info.MetadataBytes, err
}

// mount mounts the image on all hosts at the same moment.
func (f *fleet) mount(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range f.Hosts() {
		g.Go(func() error { return f.mountOn(ctx, h) })
	}
	return g.Wait()
}

func (f *fleet) mountOn(ctx context.Context, h *lab.Host) error {
	err := os.MkdirAll(f.dir(h), 0o755)
	if err == nil {
		_, err = client(h).Mount(ctx, f.ref, f.dir(h))
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", h.Name, err, h.Node.AgentLogTail())
	}
	return nil
}

func (f *fleet) dir(h *lab.Host) string { return f.Services.Path("mnt-" + h.Name) }

func client(h *lab.Host) *agent.Client {
	return agent.NewClient(filepath.Join(h.Node.State(), "admin.sock"))
}

// full waits until the hosts have all blocks of all their images.
func full(ctx context.Context, timeout time.Duration, hosts ...*lab.Host) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range hosts {
		g.Go(func() error {
			c := client(h)
			return poll(ctx, func() (bool, error) {
				images, err := c.Images(ctx)
				if err != nil {
					return false, err
				}
				held, blocks := 0, 0
				for _, im := range images {
					held, blocks = held+im.Held, blocks+im.Blocks
				}
				if ctx.Err() != nil {
					return false, fmt.Errorf("%s has %d blocks of %d after %v\n%s", h.Name, held, blocks, timeout, h.Node.AgentLogTail())
				}
				return blocks > 0 && held == blocks, nil
			})
		})
	}
	return g.Wait()
}

// poll asks ten times a second until the answer is yes.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *bench) lab8(ctx context.Context) error  { return b.spread(ctx, 8) }
func (b *bench) lab16(ctx context.Context) error { return b.spread(ctx, 16) }

// spread measures how long n hosts that all want an image at the same moment take until all of them have all of it.
func (b *bench) spread(ctx context.Context, n int) error {
	samples := map[string][]float64{}
	for round := range b.Rounds {
		for _, stripes := range []int{2, 1} {
			took, egress, err := b.spreadOnce(ctx, n, stripes)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("lab%d_t_over_lb", n)
			if stripes == 1 {
				name = fmt.Sprintf("lab%d_one_stripe_t_over_lb", n)
			} else if n == 8 {
				samples["lab_egress_over_f"] = append(samples["lab_egress_over_f"], egress)
			}
			samples[name] = append(samples[name], took)
			fmt.Printf("   round %d, %d stripes: %.3f LB, egress %.3f F\n", round+1, stripes, took, egress)
		}
	}
	direct, err := b.direct(ctx, n)
	if err != nil {
		return err
	}
	samples[fmt.Sprintf("lab%d_registry_t_over_lb", n)] = []float64{direct}
	for name, list := range samples {
		b.Add(figures.Summary(name, "ratio", list))
	}
	return nil
}

// spreadOnce returns the time in lower bounds, and what left the registry in sizes of the image.
func (b *bench) spreadOnce(ctx context.Context, n, stripes int) (took, egress float64, err error) {
	f, err := b.up(ctx, lab.InMemory, n, stripes)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Down()) }()
	before, err := f.Registry().Traffic(ctx)
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := f.mount(ctx); err != nil {
		return 0, 0, err
	}
	if err := full(ctx, 5*time.Minute, f.Hosts()...); err != nil {
		return 0, 0, err
	}
	seconds := time.Since(start).Seconds()
	after, err := f.Registry().Traffic(ctx)
	return seconds / lab.LowerBound(f.blocks, n, rate), float64(after.Sub(before).Sent) / float64(f.blocks), err
}

// direct is the same for what every fleet does without us: each host reads the registry.
func (b *bench) direct(ctx context.Context, n int) (_ float64, err error) {
	f, err := b.up(ctx, lab.InMemory, n, 2)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Down()) }()
	downloads, err := f.DownloadAll(ctx, f.ref)
	if err != nil {
		return 0, err
	}
	var last time.Duration
	for _, d := range downloads {
		last = max(last, d.Time)
	}
	return last.Seconds() / lab.LowerBound(f.plain, n, rate), nil
}
