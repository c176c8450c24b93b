package member

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

const (
	firstPause   = 50 * time.Millisecond // before a peer is tried again, doubled each time, half of it random
	longestPause = 2 * time.Second
	drainTimeout = 5 * time.Second // for reads that are under way on an edge that is not wanted any more
	outdated     = 5 * time.Second // how long a peer may refuse an epoch until the owner is told: positions are not that late
)

// A link keeps an edge to a peer, once it was started, for as long as it is wanted. A nil link is one to nobody.
type link struct {
	seat    *seat
	id      stream.PeerID
	stripes stream.Stripes
	ctx     context.Context // ends with the wish
	cancel  context.CancelFunc
	peer    atomic.Pointer[stream.Peer] // nil: not attached; changed under Member.mu

	// Under Member.mu, which comes before the locks of ladders.
	addrs   []netip.AddrPort
	epoch   uint64
	started bool
	err     error // why not, if it has been tried
	changed chan struct{}
}

// link returns a link that is not started.
func (s *seat) link(to stream.Address, stripes stream.Stripes, epoch uint64) *link {
	l := &link{seat: s, id: to.ID, addrs: to.Addrs, stripes: stripes, epoch: epoch, changed: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(s.member.ctx)
	return l
}

// start begins to attach; Member.mu is held.
func (l *link) start() {
	if !l.started && l.ctx.Err() == nil {
		l.started = true
		l.seat.member.wg.Go(l.run)
	}
}

// move tells where the peer is now, and the epoch of attachments to come; Member.mu is held.
func (l *link) move(to stream.Address, epoch uint64) { l.addrs, l.epoch = to.Addrs, epoch }

// end gives the link up; reads that are under way may finish.
func (l *link) end() {
	if l != nil {
		l.cancel()
	}
}

// attached says whether there is an edge.
func (l *link) attached() bool { return l != nil && l.peer.Load() != nil }

// run attaches, again and again, until the link is ended.
func (l *link) run() {
	pause, fresh := firstPause, time.Now()
	for l.ctx.Err() == nil {
		peer, err := l.attach()
		if err == nil {
			pause = firstPause
			l.set(peer, nil)
			err = l.follow(peer)
		}
		if !errors.Is(err, stream.ErrStale) {
			fresh = time.Now()
		}
		if l.ctx.Err() != nil {
			break
		}
		l.set(nil, err)
		if blames(err) || time.Since(fresh) > outdated {
			l.seat.member.cfg.Failed(l.id, err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, longestPause)
		l.set(nil, nil)
	}
	l.set(nil, fmt.Errorf("edge to %s is given up: %w", l.id, blockfmt.ErrTransient))
}

// blames says whether an error means that the peer is in trouble, and not that it is ahead of this member or behind it.
func blames(err error) bool {
	return !errors.Is(err, stream.ErrStale) && !errors.Is(err, blockfmt.ErrNotFound) && !errors.Is(err, context.Canceled)
}

func (l *link) attach() (*stream.Peer, error) {
	m := l.seat.member
	m.mu.Lock()
	to, at := stream.Address{ID: l.id, Addrs: l.addrs}, stream.Attachment{Epoch: l.epoch, Stripes: l.stripes}
	m.mu.Unlock()
	return m.cfg.Attach(l.ctx, m.share, to, at)
}

// follow returns why the edge ended.
func (l *link) follow(peer *stream.Peer) error {
	select {
	case <-peer.Done():
		return peer.Err()
	case <-l.ctx.Done():
		patience, stop := context.WithTimeout(l.seat.member.ctx, drainTimeout)
		defer stop()
		return peer.Drain(patience)
	}
}

// set notes how the link is, and has reads look for it.
func (l *link) set(peer *stream.Peer, err error) {
	m := l.seat.member
	m.mu.Lock()
	defer m.mu.Unlock()
	was := l.peer.Swap(peer)
	l.note(err)
	switch {
	case peer != nil:
		l.seat.up(l)
	case was != nil && l.ctx.Err() == nil:
		l.seat.down(l)
	}
}

// note wakes those who wait for the edge, with the reason why there is none; Member.mu is held.
func (l *link) note(err error) {
	l.err = err
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait returns the edge's Peer as soon as there is one, starting the link if need be; or why there is none.
func (l *link) wait(ctx context.Context) (*stream.Peer, error) {
	for {
		l.seat.member.mu.Lock()
		l.start()
		peer, err, changed := l.peer.Load(), l.err, l.changed
		l.seat.member.mu.Unlock()
		switch {
		case peer != nil:
			return peer, nil
		case err != nil:
			return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return nil, fmt.Errorf("edge to %s is given up: %w", l.id, blockfmt.ErrTransient)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// rung is a link as the Source of a ladder. It is always asked, because it will get the block, or only for what it has.
type rung struct {
	link   *link
	always bool
}

func (r rung) Verified() bool { return true }

func (r rung) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	peer, err := r.link.wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	if !r.always && !peer.Has(ref) {
		return nil, fmt.Errorf("%v at %s: %w", ref, r.link.id, blockfmt.ErrNotFound)
	}
	return peer.Block(ctx, ref)
}

// Has says whether the peer is known to have the block.
func (r rung) Has(ref blockfmt.Ref) bool {
	peer := r.link.peer.Load()
	return peer != nil && peer.Has(ref)
}

// Progress says how the read of a block gets on.
func (r rung) Progress(ref blockfmt.Ref) (p stream.Progress) {
	if peer := r.link.peer.Load(); peer != nil {
		return peer.Progress(ref)
	}
	return p
}
