package fetch

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// Limited returns a Source that asks next for at most slots blocks at a time. Demand reads go first; reads in the
// background leave a quarter of the slots (at least one, if there are two) free for demand to come.
func Limited(next blockfmt.Source, slots int) blockfmt.Source {
	return &limited{next: next, free: slots, reserve: reserve(slots)}
}

// reserve is how many of n slots are kept for demand.
func reserve(n int) int {
	if n < 2 {
		return 0
	}
	return max(1, n/4)
}

type limited struct {
	next    blockfmt.Source
	reserve int

	mu      sync.Mutex
	free    int
	waiting [2][]*ticket // demand, background; in the order of arrival
}

type ticket struct{ granted chan struct{} }

func (l *limited) Verified() bool { return blockfmt.IsVerified(l.next) }

func (l *limited) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if err := l.acquire(ctx); err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	defer l.release()
	return l.next.Block(ctx, ref)
}

func (l *limited) acquire(ctx context.Context) error {
	t := &ticket{make(chan struct{})}
	l.enqueue(t, blockfmt.IsDemand(ctx))
	promoted := blockfmt.Demand(ctx)
	for {
		select {
		case <-t.granted:
			return nil
		case <-promoted:
			l.enqueue(t, true)
			promoted = nil
		case <-ctx.Done():
			if !l.withdraw(t) {
				l.release()
			}
			return context.Cause(ctx)
		}
	}
}

// enqueue puts a ticket that is not granted into a lane, out of the other one.
func (l *limited) enqueue(t *ticket, demand bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-t.granted:
		return
	default:
	}
	for i := range l.waiting {
		l.waiting[i] = slices.DeleteFunc(l.waiting[i], func(o *ticket) bool { return o == t })
	}
	lane := 1
	if demand {
		lane = 0
	}
	l.waiting[lane] = append(l.waiting[lane], t)
	l.grant()
}

// withdraw takes a ticket out of its lane; false if it was granted.
func (l *limited) withdraw(t *ticket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.waiting {
		if at := slices.Index(l.waiting[i], t); at >= 0 {
			l.waiting[i] = slices.Delete(l.waiting[i], at, at+1)
			return true
		}
	}
	return false
}

func (l *limited) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free++
	l.grant()
}

// grant gives free slots to those who wait; mu is held.
func (l *limited) grant() {
	for lane, keep := range []int{0, l.reserve} {
		for l.free > keep && len(l.waiting[lane]) > 0 {
			close(l.waiting[lane][0].granted)
			l.waiting[lane] = l.waiting[lane][1:]
			l.free--
		}
	}
}
