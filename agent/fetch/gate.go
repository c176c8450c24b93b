package fetch

import (
	"context"
	"slices"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// A Gate is a Source that lets bulk transfers beside it wait while demand reads are under way. A read of what such a transfer brings
// waits for that instead of asking for the same bytes again, and hurries it; a demand read only if it brings them soon.
type Gate struct {
	next blockfmt.Source

	mu         sync.Mutex
	demand     int                  // reads of next
	flying     map[blockfmt.Ref]int // reads of next, by block
	changed    chan struct{}        // closed and replaced when a transfer may go on that had to wait
	deliveries []*delivery
}

// Gated returns a Gate over next.
func Gated(next blockfmt.Source) *Gate {
	return &Gate{next: next, flying: map[blockfmt.Ref]int{}, changed: make(chan struct{})}
}

// Verified implements blockfmt.VerifiedSource.
func (g *Gate) Verified() bool { return blockfmt.IsVerified(g.next) }

func (g *Gate) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if d, p := g.coming(ref); d != nil {
		if stored := d.await(ctx, p); stored != nil {
			return stored, nil
		}
	}
	demand := blockfmt.IsDemand(ctx)
	g.enter(ref, demand)
	defer g.leave(ref, demand)
	return g.next.Block(ctx, ref)
}

func (g *Gate) enter(ref blockfmt.Ref, demand bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flying[ref]++
	if demand {
		g.demand++
	}
}

func (g *Gate) leave(ref blockfmt.Ref, demand bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flying[ref]--; g.flying[ref] == 0 {
		delete(g.flying, ref)
	}
	if demand {
		if g.demand--; g.demand == 0 {
			g.wake()
		}
	}
}

// fetches says whether a block is on its way beside the transfers.
func (g *Gate) fetches(ref blockfmt.Ref) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flying[ref] > 0
}

// wake lets transfers look again; g.mu is held.
func (g *Gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// coming returns the delivery that brings the block, and the parcel to wait for; nil if there is none.
func (g *Gate) coming(ref blockfmt.Ref) (*delivery, *parcel) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.deliveries {
		if p := d.parcel(ref); p != nil {
			return d, p
		}
	}
	return nil, nil
}

// expect announces the blocks of a transfer, before it asks for them, in the order in which they come. Close the delivery when it
// is over.
func (g *Gate) expect(refs []blockfmt.Ref) *delivery {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := &delivery{gate: g, refs: refs, parcels: map[blockfmt.Ref]*parcel{}}
	g.deliveries = append(g.deliveries, d)
	return d
}

func (g *Gate) remove(d *delivery) {
	g.deliveries = slices.DeleteFunc(g.deliveries, func(e *delivery) bool { return e == d })
}
