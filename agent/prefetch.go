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
	blobs   *blobs
	enabled bool
	workers int // blocks of one image at a time
	log     *slog.Logger

	ctx context.Context // ends at shutdown
	wg  sync.WaitGroup
}

// start fetches im's startup blocks in the background.
func (p *prefetcher) start(im *image) {
	record := im.record()
	if !p.enabled || len(record) == 0 {
		return
	}
	p.wg.Go(func() {
		start := time.Now()
		if err := p.run(im, record); err != nil && p.ctx.Err() == nil {
			p.log.Warn("prefetch stopped, blocks are fetched on demand", "image", im.artifact.Digest, "err", err)
			return
		}
		p.log.Info("startup blocks fetched", "image", im.artifact.Digest, "blocks", len(record), "took", time.Since(start))
	})
}

func (p *prefetcher) run(im *image, record blockfmt.Record) (err error) {
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
