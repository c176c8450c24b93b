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

// wait waits for the pause, give or take a half, and doubles it.
func (p *pause) wait(ctx context.Context) { p.waitOr(ctx, nil) }

// waitOr is wait that also ends when something happens that promises success.
func (p *pause) waitOr(ctx context.Context, event <-chan struct{}) {
	timer := time.NewTimer(p.next/2 + rand.N(p.next))
	defer timer.Stop()
	p.next = min(2*p.next, lastPause)
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-event:
	}
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
