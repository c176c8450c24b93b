package nodelab

import (
	"context"
	"fmt"
	"time"
)

// Poll calls check every few milliseconds until it succeeds, p exits, ctx ends or the timeout is over.
func (p *Process) Poll(ctx context.Context, timeout time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s exited: %v; its log ends with:\n%s", p.name, p.err, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %w; its log ends with:\n%s", p.name, ctx.Err(), err, tail(p.log))
		}
	}
}
