package api

import (
	"context"
	"sync"
)

// settled says whether it was tried to reach the schedulers.
type settled struct {
	once sync.Once
	done chan struct{}
}

func (s *settled) set() { s.once.Do(func() { close(s.done) }) }

// WaitStripes returns what Stripes does. Before the first session it waits until there is one or no scheduler could be reached,
// or ctx ends.
func (c *Client) WaitStripes(ctx context.Context) int {
	select {
	case <-c.tried.done:
	case <-ctx.Done():
	}
	return c.Stripes()
}
