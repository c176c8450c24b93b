package blockfmt

import (
	"context"
	"sync"
)

// Two lanes run along the way of the data. A read is a demand read, somebody waits for it, unless its context comes from
// Background. Where things queue, demand goes first; and a read in the background becomes a demand read when somebody
// comes to wait for it.

type laneKey struct{}

// lane is the urgency of a read in the background until somebody wants it now.
type lane struct {
	once   sync.Once
	demand chan struct{} // closed by Promote
}

// Background returns a context whose reads give way to demand reads.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, laneKey{}, &lane{demand: make(chan struct{})})
}

// Demand returns a channel that is closed while the read with this context is a demand read.
func Demand(ctx context.Context) <-chan struct{} {
	if l, ok := ctx.Value(laneKey{}).(*lane); ok {
		return l.demand
	}
	return alwaysDemand
}

// Promote makes the reads with this context demand reads.
func Promote(ctx context.Context) {
	if l, ok := ctx.Value(laneKey{}).(*lane); ok {
		l.once.Do(func() { close(l.demand) })
	}
}

// IsDemand says whether the read with this context is a demand read now.
func IsDemand(ctx context.Context) bool {
	select {
	case <-Demand(ctx):
		return true
	default:
		return false
	}
}

// alwaysDemand is the lane of all contexts that are not Background's.
var alwaysDemand = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
