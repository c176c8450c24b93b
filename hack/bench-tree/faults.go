package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// crashes kills the root of a stripe when half of the image is there, and in other labs an inner host or nobody, while readers
// read on all hosts.
func (b *bench) crashes(ctx context.Context) error {
	var egress, added []float64
	for range b.Rounds {
		root, err := b.crash(ctx, rootOf)
		if err != nil {
			return err
		}
		inner, err := b.crash(ctx, innerOf)
		if err != nil {
			return err
		}
		quiet, err := b.crash(ctx, nobody)
		if err != nil {
			return err
		}
		egress = append(egress, root.egress)
		added = append(added, max(0, (inner.p99-quiet.p99).Seconds()))
		fmt.Printf("   root killed: egress %.3f F; 99th percentile of reads: %v with an inner host killed, %v without\n", root.egress, inner.p99, quiet.p99)
	}
	b.Add(figures.Summary("lab_root_crash_egress_over_f", "ratio", egress), figures.Summary("lab_kill_p99_added_seconds", "s", added))
	return nil
}

// outcome is how a fleet got on.
type outcome struct {
	egress float64       // bytes that left the registry, of the image
	p99    time.Duration // of the reads of the hosts that survived, from the kill on
}

// victim chooses who is killed; nil for nobody.
type victim func(api.Tree) (peer string)

// rootOf is the root of stripe 0.
func rootOf(t api.Tree) string {
	return memberOf(t, func(m api.TreeMember) bool { return m.Parents[0] == "" })
}

// innerOf is somebody who feeds others but is no root.
func innerOf(t api.Tree) string {
	return memberOf(t, func(m api.TreeMember) bool {
		return !slices.Contains(m.Parents, "") && slices.ContainsFunc(t.Members, func(c api.TreeMember) bool { return slices.Contains(c.Parents, m.Agent.ID) })
	})
}

func nobody(api.Tree) string { return "" }

func memberOf(t api.Tree, match func(api.TreeMember) bool) string {
	if i := slices.IndexFunc(t.Members, match); i >= 0 {
		return t.Members[i].Agent.Addrs[0].Addr().String()
	}
	return ""
}

// crash has eight hosts take an image at the same moment, and kills one when half of it is there.
func (b *bench) crash(ctx context.Context, choose victim) (out outcome, err error) {
	f, err := b.up(ctx, "", 8, 2)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, f.Down()) }()
	before, err := f.Registry().Traffic(ctx)
	if err != nil {
		return out, err
	}
	if err := f.mount(ctx); err != nil {
		return out, err
	}
	if err := f.halfWay(ctx); err != nil {
		return out, err
	}
	readers := startReaders(f)
	survivors, err := f.kill(ctx, choose)
	if err == nil {
		err = full(ctx, 3*time.Minute, survivors...)
	}
	latencies, e := readers.stop(survivors)
	if err := errors.Join(err, e); err != nil {
		return out, err
	}
	after, err := f.Registry().Traffic(ctx)
	if err != nil {
		return out, err
	}
	slices.Sort(latencies)
	return outcome{float64(after.Sub(before).Sent) / float64(f.blocks), latencies[len(latencies)*99/100]}, nil
}

// halfWay waits until the first host has half of the image.
func (f *fleet) halfWay(ctx context.Context) error {
	c := client(f.Hosts()[0])
	return poll(ctx, func() (bool, error) {
		images, err := c.Images(ctx)
		return err == nil && len(images) == 1 && 2*images[0].Held >= images[0].Blocks, err
	})
}

// kill kills the chosen host and returns the others.
func (f *fleet) kill(ctx context.Context, choose victim) ([]*lab.Host, error) {
	c := client(f.Hosts()[0])
	trees, err := c.Trees(ctx)
	if err != nil || len(trees) != 1 {
		return nil, fmt.Errorf("%d trees: %w", len(trees), err)
	}
	t, err := c.Tree(ctx, trees[0].Image)
	if err != nil {
		return nil, err
	}
	address := choose(t)
	i := slices.IndexFunc(f.Hosts(), func(h *lab.Host) bool { return h.Addr.String() == address })
	if i < 0 {
		return f.Hosts(), nil
	}
	return slices.Delete(slices.Clone(f.Hosts()), i, i+1), f.Hosts()[i].Node.KillAgent()
}

// readers read pages of the image on all hosts, as containers do.
type readers struct {
	cancel context.CancelFunc
	group  errgroup.Group

	mu        sync.Mutex
	latencies map[*lab.Host][]time.Duration
	errs      map[*lab.Host]error
}

func startReaders(f *fleet) *readers {
	ctx, cancel := context.WithCancel(context.Background())
	r := &readers{cancel: cancel, latencies: map[*lab.Host][]time.Duration{}, errs: map[*lab.Host]error{}}
	for i, h := range f.Hosts() {
		r.group.Go(func() error {
			latencies, err := readPages(ctx, f.dir(h), uint64(i))
			r.mu.Lock()
			defer r.mu.Unlock()
			r.latencies[h], r.errs[h] = latencies, err
			return nil
		})
	}
	return r
}

// stop returns how long the reads of some hosts took, all of which must have succeeded.
func (r *readers) stop(hosts []*lab.Host) (latencies []time.Duration, err error) {
	r.cancel()
	if err := r.group.Wait(); err != nil {
		return nil, err
	}
	for _, h := range hosts {
		latencies, err = append(latencies, r.latencies[h]...), errors.Join(err, r.errs[h])
	}
	if len(latencies) < 100 && err == nil {
		err = fmt.Errorf("only %d reads in the time", len(latencies))
	}
	return latencies, err
}

// readPages reads pages of files in random order, a hundred a second, until ctx ends.
func readPages(ctx context.Context, dir string, seed uint64) (latencies []time.Duration, err error) {
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	page := make([]byte, 4096)
	for _, path := range files {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return latencies, nil
		}
		start := time.Now()
		file, err := os.Open(path)
		if err != nil {
			return latencies, err
		}
		_, err = file.Read(page)
		file.Close()
		if err != nil && err != io.EOF {
			return latencies, err
		}
		latencies = append(latencies, time.Since(start))
	}
	return latencies, nil
}
