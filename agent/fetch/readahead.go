package fetch

import (
	"context"
	"errors"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// ReadaheadConfig of a Readahead. Blocks and Prefetch are needed.
type ReadaheadConfig struct {
	Blocks   int                                        // of the blob
	Prefetch func(ctx context.Context, block int) error // makes a block ready; ctx is in the background
	Trigger  int                                        // blocks in sequence before anything is prefetched. Default 2.
	Min      int                                        // blocks to be ahead at first, doubled from then on. Default 4.
	Max      int                                        // blocks to be ahead at most. Default 16: 8 MiB.
	Workers  int                                        // prefetches at a time. Default 8.
}

func (c ReadaheadConfig) withDefaults() ReadaheadConfig {
	setDefault(&c.Trigger, 2)
	setDefault(&c.Min, 4)
	setDefault(&c.Max, 16)
	setDefault(&c.Workers, 8)
	return c
}

// streams is how many sequential readers of a blob are told apart.
const streams = 4

// Readahead watches which blocks of a blob are demanded, and prefetches what sequential readers will want next.
type Readahead struct {
	cfg    ReadaheadConfig
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	clock   int
	streams [streams]stream
	queue   []int
	workers int
}

// stream is one reader, who reads from low to high.
type stream struct {
	head  int // the last block that was demanded
	run   int // blocks in sequence; 0: the slot is unused
	ahead int // the first block that was not queued
	size  int // how far to be ahead
	used  int // clock of the last demand
}

// NewReadahead returns a Readahead. Close it when done.
func NewReadahead(cfg ReadaheadConfig) *Readahead {
	r := &Readahead{cfg: cfg.withDefaults()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close cancels what is under way and waits for it.
func (r *Readahead) Close() error {
	r.mu.Lock()
	r.cancel() // under mu: no worker begins afterwards
	r.mu.Unlock()
	r.wg.Wait()
	return nil
}

// Touched notes that a block is demanded. It does not block.
func (r *Readahead) Touched(block int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	s := r.find(block)
	s.used = r.clock
	if s.run < r.cfg.Trigger || r.ctx.Err() != nil {
		return
	}
	from := max(s.ahead, s.head+1)
	if from-s.head-1 > s.size/2 { // far enough ahead
		return
	}
	s.size = min(max(2*s.size, r.cfg.Min), r.cfg.Max)
	s.ahead = min(s.head+1+s.size, r.cfg.Blocks)
	for b := from; b < s.ahead; b++ {
		r.queue = append(r.queue, b)
	}
	for r.workers < min(r.cfg.Workers, len(r.queue)) {
		r.workers++
		r.wg.Go(r.work)
	}
}

// find returns the stream that the block continues, or a new one in place of the one that was longest unused. The kernel
// reads ahead too, in parallel: a stream may skip a block, or come back to one.
func (r *Readahead) find(block int) *stream {
	oldest := &r.streams[0]
	for i := range r.streams {
		s := &r.streams[i]
		if s.run > 0 && block >= s.head-1 && block <= s.head+2 {
			s.run++
			s.head = max(s.head, block)
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{head: block, run: 1}
	return oldest
}

func (r *Readahead) work() {
	for {
		r.mu.Lock()
		if len(r.queue) == 0 || r.ctx.Err() != nil {
			r.workers--
			r.mu.Unlock()
			return
		}
		block := r.queue[0]
		r.queue = r.queue[1:]
		r.mu.Unlock()
		if err := r.cfg.Prefetch(blockfmt.Background(r.ctx), block); err != nil && !errors.Is(err, context.Canceled) {
			r.mu.Lock()
			r.queue = nil // demand will say what is wrong
			r.mu.Unlock()
		}
	}
}
