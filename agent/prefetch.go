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
	enabled  bool
	budget   int64 // bytes of an image without a startup record
	workers  int   // blocks of one image at a time
	log      *slog.Logger

	ctx context.Context // ends at shutdown
	wg  sync.WaitGroup
}

// start fetches im's startup blocks in the background.
func (p *prefetcher) start(im *image) {
	if !p.enabled {
		return
	}
	run, done := p.sweep, "likely blocks fetched"
	if record := im.record(); len(record) > 0 {
		run, done = func(im *image) error { return p.follow(im, record) }, "startup blocks fetched"
	}
	p.wg.Go(func() {
		start := time.Now()
		if err := run(im); err != nil && p.ctx.Err() == nil {
			p.log.Warn("prefetch stopped, blocks are fetched on demand", "image", im.artifact.Digest, "err", err)
			return
		}
		p.log.Info(done, "image", im.artifact.Digest, "took", time.Since(start))
	})
}

// sweep keeps in the cache, as stored, what running programs may read of an image whose startup nobody recorded.
func (p *prefetcher) sweep(im *image) error {
	s, err := p.newSweep(im.origin)
	if err != nil {
		return err
	}
	left := p.budget
	for _, i := range im.smallestFirst() {
		left -= s.Add(im.indexes[i], im.artifact.Layers[i].RunningBlocks, left)
	}
	return s.Run(p.ctx)
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
