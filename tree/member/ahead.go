package member

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// fetchAhead begins or ends the fetching ahead, as the position says; Member.mu is held.
func (s *seat) fetchAhead() {
	switch {
	case s.at.root() && s.ahead == nil && s.member.cfg.Ahead > 0:
		ctx, stop := context.WithCancel(s.member.ctx)
		s.ahead = stop
		s.member.wg.Go(func() { s.member.fetch(ctx, s.stripe) })
	case !s.at.root() && s.ahead != nil:
		s.ahead()
		s.ahead = nil
	}
}

// fetch reads what the member lacks of the stripe's blocks that all will want, in their order, until it has them or ctx ends. It
// begins with one block and has one more under way with each that came: all wait for the first, so the whole link is for it.
func (m *Member) fetch(ctx context.Context, stripe int) {
	turns := make(chan struct{}, m.cfg.Workers)
	turns <- struct{}{}
	var given atomic.Int64
	given.Store(1)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, i := range m.cfg.Order[:m.cfg.Ahead] {
		if m.cfg.Image.Stripe(i) != stripe || m.cfg.Store.Has(m.cfg.Image.Ref(i)) {
			continue
		}
		select {
		case <-turns:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			m.fetchBlock(ctx, i)
			turns <- struct{}{}
			if given.Add(1) <= int64(m.cfg.Workers) {
				turns <- struct{}{}
			}
		})
	}
}

// fetchBlock reads a block in the background. What cannot be had is tried again until ctx ends: all members wait for it. A read
// that is under way then is finished, because others may have been told already that the block is here.
func (m *Member) fetchBlock(ctx context.Context, i int) {
	pause := firstPause
	for {
		if _, err := m.blocks.Block(blockfmt.Background(m.ctx), m.cfg.Image.Ref(i)); err == nil || ctx.Err() != nil {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, longestPause)
	}
}
