package store

import (
	"context"
	"time"
)

// Follow watches the items below a prefix until ctx ends, and again after a pause whenever the storage fails, of which failed is told.
func Follow(ctx context.Context, s Store, prefix string, pause time.Duration, changed func([]Item), failed func(error)) {
	for ctx.Err() == nil {
		err := s.Watch(ctx, prefix, changed)
		if ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
