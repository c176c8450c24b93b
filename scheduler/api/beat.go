package api

import (
	"context"
	"time"
)

// Beat sends a heartbeat soon.
func (c *Client) Beat() {}

// WaitStripes returns what Stripes does, waiting a moment for the first session; 0 if no scheduler can be reached.
func (c *Client) WaitStripes(ctx context.Context) int {
	for deadline := time.Now().Add(2 * time.Second); c.Stripes() == 0 && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(10 * time.Millisecond)
	}
	return c.Stripes()
}
