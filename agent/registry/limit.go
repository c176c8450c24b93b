package registry

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	// bucketTime is how much of a limit's bytes, in seconds, may come at once after a pause.
	bucketTime = 0.1
	// maxPart is how much of a body is read between two waits for a limit: bodies take turns, so that none waits for long.
	maxPart = 64 << 10
)

// limits bound the bytes per second that are read from registries.
type limits struct {
	node  throttle
	hosts map[string]throttle // by canonicalHost
}

// throttle is the limits that a body has to keep, none if it is empty.
type throttle []*rate.Limiter

func newLimits(cfg Config) limits {
	l := limits{node: newThrottle(cfg.Limit), hosts: map[string]throttle{}}
	for host, h := range cfg.Hosts {
		l.hosts[canonicalHost(host)] = newThrottle(h.Limit)
	}
	return l
}

func newThrottle(limit int64) throttle {
	if limit <= 0 {
		return nil
	}
	return throttle{rate.NewLimiter(rate.Limit(limit), max(1, int(float64(limit)*bucketTime)))}
}

// of returns the limits of what is read for a registry, wherever that sends to: its own first, so that who waits for that takes nothing
// of the node's in advance.
func (l limits) of(host string) throttle {
	return append(l.hosts[host][:len(l.hosts[host]):len(l.hosts[host])], l.node...)
}

// part returns how many of n bytes to read before the next wait.
func (t throttle) part(n int) int {
	for _, l := range t {
		n = min(n, maxPart, l.Burst())
	}
	return n
}

// wait returns when the n bytes of a part that came are within the limits.
func (t throttle) wait(ctx context.Context, host string, n int) error {
	if n == 0 {
		return nil
	}
	for _, l := range t {
		if err := l.WaitN(ctx, n); err != nil {
			if ctx.Err() == nil { // the limiter sees the end of ctx in advance
				err = fmt.Errorf("limit of %.0f bytes/s: %w: %w", float64(l.Limit()), err, blockfmt.ErrTransient)
			}
			return transportError(ctx, host, err)
		}
	}
	return nil
}
