package executor

import (
	"sync"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// maxCrashing is how many versions of functions are remembered as failing.
const maxCrashing = 10_000

// crashes delays starts of versions of functions that fail again and again. Safe for concurrent use.
type crashes struct {
	allowed  int
	min, max time.Duration

	mu      sync.Mutex
	crashes map[string]*crash // by api.Function.ID
}

type crash struct {
	failures int // in a row
	until    time.Time
	why      *failure
}

func newCrashes(cfg Config) *crashes {
	return &crashes{allowed: cfg.Failures, min: cfg.Backoff, max: cfg.MaxBackoff, crashes: map[string]*crash{}}
}

// check returns a failure if the version must not be started now.
func (c *crashes) check(id string, now time.Time) *failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	cr := c.crashes[id]
	if cr == nil || !now.Before(cr.until) {
		return nil
	}
	f := fail(api.FailureInit, "%s failed %d times in a row and is not started again for %v: %w", id, cr.failures, cr.until.Sub(now).Round(time.Millisecond), cr.why)
	f.log, f.retry = cr.why.log, cr.until.Sub(now)
	return f
}

// failed notes that an instance did not start, or ended by itself.
func (c *crashes) failed(id string, why *failure, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cr := c.crashes[id]
	if cr == nil {
		if len(c.crashes) >= maxCrashing {
			clear(c.crashes)
		}
		cr = &crash{}
		c.crashes[id] = cr
	}
	cr.failures++
	cr.why = why
	if over := cr.failures - c.allowed; over >= 0 {
		delay := c.max
		if over < 30 {
			delay = min(c.max, c.min<<over)
		}
		cr.until = now.Add(delay)
	}
}

// succeeded notes that an instance has answered an invocation.
func (c *crashes) succeeded(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.crashes, id)
}
