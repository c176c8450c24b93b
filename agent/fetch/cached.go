package fetch

import (
	"context"
	"errors"
	"fmt"

	"github.com/xylem-project/xylem/blockfmt"
)

// Cached returns a Source that asks store first and keeps in it what next gives. The bytes are verified, by the store.
func Cached(store blockfmt.Store, next blockfmt.Source) blockfmt.Source { return cached{store, next} }

type cached struct {
	store blockfmt.Store
	next  blockfmt.Source
}

// Verified holds because what next gives goes through the store first.
func (c cached) Verified() bool { return true }

// A keeper is what a Store may be as well: Keep is Put for bytes that were verified already.
type keeper interface {
	Keep(ctx context.Context, ref blockfmt.Ref, stored []byte) error
}

func (c cached) put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	if k, ok := c.store.(keeper); ok && blockfmt.IsVerified(c.next) {
		return k.Keep(ctx, ref, stored)
	}
	return c.store.Put(ctx, ref, stored)
}

func (c cached) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	stored, err := c.store.Block(ctx, ref)
	if err == nil || ctx.Err() != nil {
		return stored, err
	}
	if stored, err = c.next.Block(ctx, ref); err != nil {
		return nil, err
	}
	// A store that cannot keep the block says so in its own log; only wrong bytes concern the reader.
	if err := c.put(ctx, ref, stored); errors.Is(err, blockfmt.ErrCorrupt) {
		return nil, fmt.Errorf("from the source behind the cache: %w", err)
	}
	return stored, nil
}
