package fetch

import (
	"context"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// A Gate is a Source that lets bulk transfers beside it wait while demand reads are under way.
type Gate struct {
	next blockfmt.Source

	mu     sync.Mutex
	demand int           // reads
	free   chan struct{} // closed when there are none any more; nil while there are none
}

// Gated returns a Gate over next.
func Gated(next blockfmt.Source) *Gate { return &Gate{next: next} }

// Verified implements blockfmt.VerifiedSource.
func (g *Gate) Verified() bool { return blockfmt.IsVerified(g.next) }

func (g *Gate) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if blockfmt.IsDemand(ctx) {
		g.enter()
		defer g.leave()
	}
	return g.next.Block(ctx, ref)
}

func (g *Gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.demand++; g.demand == 1 {
		g.free = make(chan struct{})
	}
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.demand--; g.demand == 0 {
		close(g.free)
		g.free = nil
	}
}

// Wait returns when no demand read is under way, or ctx ends.
func (g *Gate) Wait(ctx context.Context) error {
	g.mu.Lock()
	free := g.free
	g.mu.Unlock()
	if free == nil {
		return ctx.Err()
	}
	select {
	case <-free:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
