package member

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// seat is a member's place in one stripe. All fields but the ladders are under Member.mu.
type seat struct {
	member *Member
	stripe int
	ladder *stream.Ladder // of the member's own reads
	relay  *stream.Ladder // of what children ask for: upward only

	at       Position
	placed   bool
	late     bool // the time for a first position is over
	parent   *link
	old      *link   // feeds until the parent does
	backups  []*link // attached when they are asked
	children []*link // of a root, to be asked for what they have
	ahead    func()  // ends the fetching ahead of a root
	hungry   func()  // ends the patience with those who should feed it, nil while somebody does
	cut      bool    // patience has ended, and the seat feeds itself and its children from the registry
}

// place moves the seat; Member.mu is held.
func (s *seat) place(at Position) {
	if s.placed && at.Epoch < s.at.Epoch {
		return
	}
	s.at, s.placed = at, true
	if s.parent != nil && s.parent.id != at.Parent.ID {
		if s.parent.attached() {
			s.old, s.parent = s.parent, s.old
		}
		s.parent.end() // it feeds nobody
		s.parent = nil
		if at.root() && at.LeaveOld {
			s.old.end()
			s.old = nil
		}
	}
	if !at.root() {
		if s.parent == nil {
			s.parent = s.link(at.Parent, stream.StripesOf(s.stripe), at.Epoch)
			s.parent.start()
		}
		s.parent.move(at.Parent, at.Epoch)
	}
	s.backups = s.links(s.backups, at.Backups)
	s.children = s.links(s.children, s.askable())
	for _, c := range s.children {
		c.start()
	}
	s.fetchAhead()
	s.climb()
}

// askable returns the children that a root asks before the registry.
func (s *seat) askable() (children []stream.Address) {
	if s.at.root() {
		for _, c := range s.at.Children {
			if !c.Avoid {
				children = append(children, c.Address)
			}
		}
	}
	return children
}

// links returns links for the peers, those that there are and new ones, and ends the others; Member.mu is held.
func (s *seat) links(old []*link, peers []stream.Address) (links []*link) {
	for _, to := range peers {
		i := slices.IndexFunc(old, func(l *link) bool { return l.id == to.ID })
		if i < 0 {
			links = append(links, s.link(to, 0, s.at.Epoch))
			continue
		}
		old[i].move(to, s.at.Epoch)
		links = append(links, old[i])
		old = slices.Delete(slices.Clone(old), i, i+1)
	}
	for _, l := range old {
		l.end()
	}
	return links
}

// climb sets whom reads ask, by what is known now; Member.mu is held. What a child asks for goes upward only, to the parent or, at
// the root, to the registry: who needs a block may look sideways for it, but who did that for others could wait for them.
func (s *seat) climb() {
	s.watch()
	var up, sideways []stream.Rung
	add := func(rungs *[]stream.Rung, name string, l *link, always bool) {
		if l != nil {
			*rungs = append(*rungs, stream.Rung{Name: name + " " + string(l.id), Source: rung{l, always}})
		}
	}
	origin := stream.Rung{Name: "registry", Source: s.member.cfg.Origin, Origin: true}
	for _, c := range s.children {
		add(&up, "child", c, false)
	}
	if !s.cut {
		add(&up, "parent", s.parent, true)
		add(&up, "parent", s.old, !s.at.root()) // who followed its parent as root may feed it now: only for what it has
	}
	lead := s.at.Standby && !s.parent.attached() && s.old == nil
	switch {
	case s.placed && (s.at.root() || lead || s.cut):
		up = append(up, origin)
	case s.placed:
		for _, b := range s.backups {
			add(&sideways, "backup", b, true)
		}
		origin.After = s.member.cfg.Repair
		sideways = append(sideways, origin)
	default:
		if !s.late {
			origin.After = s.member.cfg.Grace
		}
		sideways = append(sideways, origin)
	}
	s.relay.Set(up...)
	s.ladder.Set(slices.Concat(up, sideways)...)
}

// watch sees to it that a seat that nobody feeds does not wait for the tree for ever, behind a firewall, say, or after a revocation;
// Member.mu is held.
func (s *seat) watch() {
	fed := !s.placed || s.at.root() || s.parent.attached() || s.old.attached() || slices.ContainsFunc(s.backups, (*link).attached)
	switch {
	case !fed && s.hungry == nil:
		ctx, stop := context.WithCancel(s.member.ctx)
		s.hungry = stop
		s.member.wg.Go(func() { s.starve(ctx) })
	case fed && s.hungry != nil:
		s.hungry()
		s.hungry, s.cut = nil, false
	}
}

// starve turns to the backups when the tree had time to repair itself and did not, and gives up when they had as much.
func (s *seat) starve(ctx context.Context) {
	for _, turn := range []func(){s.askBackups, s.giveUp} {
		timer := time.NewTimer(s.member.cfg.Repair)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		s.member.mu.Lock()
		if ctx.Err() == nil {
			turn()
		}
		s.member.mu.Unlock()
	}
}

func (s *seat) askBackups() {
	for _, b := range s.backups {
		b.start()
	}
}

// giveUp makes the seat one that feeds itself, until an edge comes about. Reads that wait for one go on.
func (s *seat) giveUp() {
	s.cut = true
	s.climb()
	for _, l := range append([]*link{s.parent}, s.backups...) {
		l.note(fmt.Errorf("edge to %s does not come about: %w", l.id, blockfmt.ErrTransient))
	}
}

// up takes note that a link is attached; Member.mu is held.
func (s *seat) up(l *link) {
	if l == s.parent {
		s.old.end()
		s.old = nil
	}
	s.climb()
}

// down takes note that a link's edge ended; Member.mu is held.
func (s *seat) down(l *link) {
	if l == s.old {
		s.old.end()
		s.old = nil
	}
	s.climb()
}
