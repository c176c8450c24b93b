package fetch

import (
	"context"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Coalescer is a Source that asks next once for all reads of a block that overlap in time. One reader's end of patience
// does not concern the others; when the last one has gone, the read of next is canceled.
type Coalescer struct {
	next blockfmt.Source
	wg   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	calls  map[callKey]*call
}

// callKey has the blob besides the ID: another blob's copy of the block may be one that this reader may not have.
type callKey struct {
	id   blockfmt.BlockID
	blob digest.Digest
}

type call struct {
	ctx     context.Context
	cancel  context.CancelFunc
	readers int           // under Coalescer.mu
	done    chan struct{} // closed when stored and err are set
	stored  []byte
	err     error
}

// Coalesced returns a Coalescer over next. Close it when done.
func Coalesced(next blockfmt.Source) *Coalescer {
	return &Coalescer{next: next, calls: map[callKey]*call{}}
}

// Close cancels what is under way and waits for it.
func (c *Coalescer) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, k := range c.calls {
		k.cancel()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// Verified implements blockfmt.VerifiedSource.
func (c *Coalescer) Verified() bool { return blockfmt.IsVerified(c.next) }

func (c *Coalescer) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	key := callKey{ref.ID, ref.Blob}
	k, err := c.join(ctx, key, ref)
	if err != nil {
		return nil, err
	}
	select {
	case <-k.done:
		return k.stored, k.err
	case <-ctx.Done():
		c.leave(key, k)
		return nil, fmt.Errorf("%v: %w", ref, context.Cause(ctx))
	}
}

// Promote makes a read of the block that is under way in the background a demand read.
func (c *Coalescer) Promote(ref blockfmt.Ref) {
	c.mu.Lock()
	k := c.calls[callKey{ref.ID, ref.Blob}]
	c.mu.Unlock()
	if k != nil {
		blockfmt.Promote(k.ctx)
	}
}

// join returns the call for the block, which it starts if there is none.
func (c *Coalescer) join(ctx context.Context, key callKey, ref blockfmt.Ref) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("%v: source is closed: %w", ref, blockfmt.ErrTransient)
	}
	if k := c.calls[key]; k != nil {
		k.readers++
		if blockfmt.IsDemand(ctx) {
			blockfmt.Promote(k.ctx)
		}
		return k, nil
	}
	shared := context.WithoutCancel(ctx)
	if !blockfmt.IsDemand(ctx) {
		shared = blockfmt.Background(shared) // a lane of its own: the first reader's may span many blocks
	}
	k := &call{readers: 1, done: make(chan struct{})}
	k.ctx, k.cancel = context.WithCancel(shared)
	c.calls[key] = k
	c.wg.Go(func() {
		k.stored, k.err = c.next.Block(k.ctx, ref)
		k.cancel()
		c.forget(key, k)
		close(k.done)
	})
	return k, nil
}

// leave takes a reader away. Without readers the call is canceled and forgotten at once, so that a later reader does
// not join a canceled one.
func (c *Coalescer) leave(key callKey, k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.readers--; k.readers > 0 {
		return
	}
	k.cancel()
	if c.calls[key] == k {
		delete(c.calls, key)
	}
}

func (c *Coalescer) forget(key callKey, k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[key] == k {
		delete(c.calls, key)
	}
}
