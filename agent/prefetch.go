package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
)

// A prefetcher fetches the startup blocks of images as soon as they are known, in recorded order, while their containers
// are still being created. Demand reads go first.
type prefetcher struct {
	blobs    *blobs
	newSweep func(origin) (*fetch.Sweep, error)
	ahead    ahead
	placed   func(*image) <-chan struct{} // closed when the agent has its place in the image's tree; nil if it travels in none
	workers  int                          // blocks of one image at a time
	log      *slog.Logger

	ctx context.Context // ends at shutdown
	wg  sync.WaitGroup
}

// start fetches im's startup blocks in the background.
func (p *prefetcher) start(im *image) {
	if !p.ahead.enabled {
		return
	}
	p.wg.Go(func() {
		start := time.Now()
		record := im.record()
		_, err := p.blobs.source(im) // enters the tree, and is pushed from then on
		if err == nil {
			err = p.follow(im, record)
		}
		if err == nil {
			err = p.rest(im, len(record) > 0)
		}
		if err != nil && p.ctx.Err() == nil {
			p.log.Warn("prefetch stopped, blocks are fetched on demand", "image", im.artifact.Digest, "err", err)
			return
		}
		done := "startup blocks fetched"
		if len(record) == 0 {
			done = "likely blocks fetched"
		}
		p.log.Info(done, "image", im.artifact.Digest, "took", time.Since(start))
	})
}

// ahead says what is fetched of an image that nobody has asked for.
type ahead struct {
	enabled bool
	budget  int64 // bytes of an image without a startup record
	fill    bool  // all the rest
}

func aheadOf(cfg Config) ahead { return ahead{cfg.Prefetch, int64(cfg.BackgroundFetch), cfg.Fill} }

// order returns an image's blocks by their numbers in the tree, the first ones needed first, and how many of them are
// fetched ahead.
func (a ahead) order(im *image) (order []int, n int) {
	first := make([]int, len(im.indexes)) // number of each layer's first block
	for i := 1; i < len(first); i++ {
		first[i] = first[i-1] + im.indexes[i-1].Len()
	}
	for _, pos := range im.record() {
		order = append(order, first[pos.Layer]+pos.Block)
	}
	n = len(order)
	left := a.budget
	for _, i := range im.smallestFirst() {
		for b := range min(im.artifact.Layers[i].RunningBlocks, im.indexes[i].Len()) {
			if left -= im.indexes[i].Ref(b).Length; left < 0 {
				break
			}
			order = append(order, first[i]+b)
		}
	}
	if n == 0 {
		n = len(order)
	}
	if a.fill {
		for i := range first {
			for b := range im.indexes[i].Len() {
				order = append(order, first[i]+b)
			}
		}
		n = len(order)
	}
	if !a.enabled {
		n = 0
	}
	return order, n
}

// rest fetches what nobody asks for as far as it does not come through a tree. Who gets no place in one fetches what it is likely
// to need soon; all the rest can wait for the schedulers, because every agent may be without them now.
func (p *prefetcher) rest(im *image, recorded bool) error {
	placed := p.placed(im)
	if placed == nil {
		return p.sweep(p.ctx, im, recorded, p.ahead)
	}
	wait := time.NewTimer(grace)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-placed:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	p.wg.Go(func() {
		select {
		case <-placed:
			stop()
		case <-ctx.Done():
		}
	})
	soon := p.ahead
	soon.fill = false
	err := p.sweep(ctx, im, recorded, soon)
	if ctx.Err() != nil && p.ctx.Err() == nil {
		return nil
	}
	return err
}

// sweep keeps in the cache, as stored, what running programs may read of an image whose startup nobody recorded, and the rest
// of every image if that is wanted.
func (p *prefetcher) sweep(ctx context.Context, im *image, recorded bool, ahead ahead) error {
	s, err := p.newSweep(im.origin)
	if err != nil {
		return err
	}
	left := ahead.budget
	for _, i := range im.smallestFirst() {
		if !recorded {
			left -= s.Add(im.indexes[i], im.artifact.Layers[i].RunningBlocks, left)
		}
	}
	for _, ix := range im.indexes {
		if ahead.fill {
			s.Add(ix, ix.Len(), ix.StoredSize())
		}
	}
	return s.Run(ctx)
}

// follow makes the blocks of a startup record ready, in its order.
func (p *prefetcher) follow(im *image, record blockfmt.Record) (err error) {
	open := map[blockfmt.Ref]*blob{} // by the block
	defer func() {
		for _, b := range open {
			err = errors.Join(err, p.blobs.release(b))
		}
	}()
	order := make([]blockfmt.Ref, 0, len(record))
	for _, pos := range record {
		ref := im.indexes[pos.Layer].Ref(pos.Block)
		if open[ref] != nil {
			continue
		}
		if open[ref], err = p.blobs.acquire(im, pos.Layer); err != nil {
			delete(open, ref)
			return err
		}
		order = append(order, ref)
	}
	return fetch.Prefetcher{Order: order, Workers: p.workers, Fetch: func(ctx context.Context, ref blockfmt.Ref) error {
		return open[ref].file.Prefetch(ctx, ref.Number)
	}}.Run(p.ctx)
}

// wait returns when no prefetch runs any more; p.ctx must have ended.
func (p *prefetcher) wait() { p.wg.Wait() }
