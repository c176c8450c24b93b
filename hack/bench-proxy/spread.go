package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
)

const (
	// hosts and rate of the lab, in which the registry's link is like all others.
	hosts = 8
	rate  = 100 * lab.Mbit
)

// lab8 measures how long eight hosts take to pull an unconverted image at the same moment, through their proxies and without.
func (b *bench) lab8(ctx context.Context) error {
	samples := map[string][]float64{}
	for round := range b.Rounds {
		took, egress, err := b.pull(ctx, lab.Proxied)
		if err != nil {
			return err
		}
		fmt.Printf("   round %d: %.3f LB, egress %.3f F\n", round+1, took, egress)
		samples["lab8_plain_t_over_lb"] = append(samples["lab8_plain_t_over_lb"], took)
		samples["lab8_plain_egress_over_f"] = append(samples["lab8_plain_egress_over_f"], egress)
	}
	took, _, err := b.pull(ctx, func(ref string) string { return ref })
	samples["lab8_plain_direct_t_over_lb"] = []float64{took}
	for name, list := range samples {
		b.Add(figures.Summary(name, "ratio", list))
	}
	return err
}

// pull returns how long all hosts of a new lab take, in lower bounds, and what left the registry, in sizes of the image.
func (b *bench) pull(ctx context.Context, named func(ref string) string) (took, egress float64, err error) {
	l, err := lab.Up(ctx, lab.Config{Dir: lab.InMemory, Hosts: hosts, Link: lab.Link{Up: rate, Down: rate, Congestion: "cubic"}, Agents: true, Scheduler: true, Xylem: b.Xylem})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	image, err := demoimage.Build(ctx, b.Cache, os.Stdout)
	if err != nil {
		return 0, 0, err
	}
	python, err := image.Python()
	if err != nil {
		return 0, 0, err
	}
	ref, err := l.Services.Push(ctx, "python:1", python)
	if err != nil {
		return 0, 0, err
	}
	before, err := l.Registry().Traffic(ctx)
	if err != nil {
		return 0, 0, err
	}
	downloads, err := l.DownloadAll(ctx, named(ref))
	if err != nil {
		for _, h := range l.Hosts() {
			err = fmt.Errorf("%w\n%s: %s", err, h.Name, h.Node.AgentLogTail())
		}
		return 0, 0, err
	}
	after, err := l.Registry().Traffic(ctx)
	var last time.Duration
	for _, d := range downloads {
		last = max(last, d.Time)
	}
	f := downloads[0].Bytes
	return last.Seconds() / lab.LowerBound(f, hosts, rate), float64(after.Sub(before).Sent) / float64(f), err
}
