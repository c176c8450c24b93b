package api

import (
	"context"
	"math/rand/v2"
	"time"
)

// A pause grows with every failure, so that many agents do not press a scheduler that comes back.
type pause struct{ next time.Duration }

const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

func newPause() *pause { return &pause{firstPause} }

// wait waits for the pause, give or take a half, and doubles it. It returns false when ctx ends.
func (p *pause) wait(ctx context.Context) bool {
	d := p.next/2 + rand.N(p.next)
	p.next = min(2*p.next, lastPause)
	return sleep(ctx, d)
}

// sleep returns false when ctx ends before that.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
