package fetch

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/xylem-project/xylem/blockfmt"
)

// Prefetcher works through blocks that will be wanted, such as those of a startup record, in their order. Demand reads
// pre-empt it: its reads are in the background.
type Prefetcher struct {
	Order   []blockfmt.Ref
	Fetch   func(ctx context.Context, ref blockfmt.Ref) error // makes a block ready
	Workers int                                               // blocks at a time. Default 8.
}

// maxFailures in a row end a Prefetcher's run.
const maxFailures = 3

// Run fetches all blocks and returns when it is done, or ctx ends, or three blocks in a row failed; then with the error of the last one.
// Single failures are left to the reader who demands the block.
func (p Prefetcher) Run(ctx context.Context) error {
	setDefault(&p.Workers, 8)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	var next, failures atomic.Int64
	for range min(p.Workers, len(p.Order)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(len(p.Order)) {
					return
				}
				if err := p.Fetch(blockfmt.Background(ctx), p.Order[i]); err == nil {
					failures.Store(0)
				} else if failures.Add(1) >= maxFailures {
					stop(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
