package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
)

// A prefetcher fetches the startup blocks of images as soon as they are known, in recorded order, while their containers
// are still being created. Demand reads go first: see fetch.Limited.
type prefetcher struct {
	blobs   *blobs
	enabled bool
	limit   int // concurrent blocks of one image
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
	open := make([]*blob, len(im.indexes))
	defer func() {
		for _, b := range open {
			if b != nil {
				err = errors.Join(err, p.blobs.release(b))
			}
		}
	}()
	g, ctx := errgroup.WithContext(fetch.Background(p.ctx))
	g.SetLimit(p.limit)
	for _, pos := range record {
		if open[pos.Layer] == nil {
			if open[pos.Layer], err = p.blobs.acquire(im, pos.Layer); err != nil {
				break
			}
		}
		b := open[pos.Layer]
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return b.file.Prefetch(ctx, pos.Block) })
	}
	return errors.Join(err, g.Wait())
}

// wait returns when no prefetch runs any more; p.ctx must have ended.
func (p *prefetcher) wait() { p.wg.Wait() }
