package stream

import (
	"context"
	"sync"
	"time"
)

// pacer keeps bytes to a rate, lower lanes first. Nil does not keep them to any.
type pacer struct {
	perByte time.Duration // times 1024
	burst   time.Duration // how far the line may be behind its schedule and catch up

	mu      sync.Mutex
	free    time.Time // when the line has sent what was granted
	waiting [lanes][]*turn
	timer   *time.Timer // grants, while somebody waits
}

type turn struct {
	lane    Lane
	n       int
	granted chan struct{}
}

// newPacer returns a pacer for so many bytes a second; 0 is no limit.
func newPacer(rate int64) *pacer {
	if rate <= 0 {
		return nil
	}
	return &pacer{perByte: time.Duration(1024 * int64(time.Second) / rate), burst: 2 * time.Millisecond}
}

func (p *pacer) duration(n int) time.Duration { return time.Duration(n) * p.perByte / 1024 }

// queue asks for n bytes to pass.
func (p *pacer) queue(lane Lane, n int) *turn {
	t := &turn{lane, n, make(chan struct{})}
	if p == nil {
		close(t.granted)
		return t
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting[lane] = append(p.waiting[lane], t)
	p.grant()
	return t
}

// take waits until n bytes may pass.
func (p *pacer) take(ctx context.Context, lane Lane, n int) error {
	t := p.queue(lane, n)
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
		p.withdraw(t)
		return context.Cause(ctx)
	}
}

// grant lets pass what may, and sets the timer for the rest; mu is held.
func (p *pacer) grant() {
	now := time.Now()
	for {
		t := p.first()
		if t == nil {
			return
		}
		if wait := p.free.Sub(now); wait > 0 {
			p.wakeIn(wait)
			return
		}
		if p.free.Before(now.Add(-p.burst)) {
			p.free = now.Add(-p.burst)
		}
		p.free = p.free.Add(p.duration(t.n))
		close(t.granted)
		p.pop()
	}
}

func (p *pacer) first() *turn {
	for _, lane := range p.waiting {
		if len(lane) > 0 {
			return lane[0]
		}
	}
	return nil
}

func (p *pacer) pop() {
	for i, lane := range p.waiting {
		if len(lane) > 0 {
			p.waiting[i] = lane[1:]
			return
		}
	}
}

func (p *pacer) wakeIn(d time.Duration) {
	if p.timer != nil {
		p.timer.Reset(d)
		return
	}
	p.timer = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.grant()
	})
}

// withdraw takes a turn back; true if it was granted already.
func (p *pacer) withdraw(t *turn) (granted bool) {
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.waiting[t.lane])
	p.waiting[t.lane] = without(p.waiting[t.lane], t)
	return len(p.waiting[t.lane]) == n
}
