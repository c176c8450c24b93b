// Package fetch holds the policies on the way of the data: each is a decorator that makes a blockfmt.Source of another
// one, in its own file. A node's stack, from the reader down, is
//
//	Deadline(Coalesced(Cached(disk, Fallback(Retry(Verified(Limited(parent))), Retry(Verified(Ranged(registry)))))))
//
// Two lanes run through it: a read is a demand read unless its context comes from Background. Where things queue, demand
// goes first, and a demand read that joins a block which is being prefetched takes it along into its lane.
package fetch

import (
	"context"
	"sync"
)

type laneKey struct{}

// lane is the urgency of a read in the background until somebody wants it now.
type lane struct {
	once   sync.Once
	demand chan struct{} // closed by promote
}

// Background returns a context whose reads give way to demand reads.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, laneKey{}, &lane{demand: make(chan struct{})})
}

// demand returns a channel that is closed while the read with this context is a demand read.
func demand(ctx context.Context) <-chan struct{} {
	if l, ok := ctx.Value(laneKey{}).(*lane); ok {
		return l.demand
	}
	return closed
}

// promote makes the read with this context a demand read.
func promote(ctx context.Context) {
	if l, ok := ctx.Value(laneKey{}).(*lane); ok {
		l.once.Do(func() { close(l.demand) })
	}
}

func isDemand(ctx context.Context) bool {
	select {
	case <-demand(ctx):
		return true
	default:
		return false
	}
}

// closed is the lane of all contexts that are not Background's.
var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
