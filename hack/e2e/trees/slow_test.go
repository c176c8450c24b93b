package trees

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// TestSlowUplink: somebody who feeds others has a tenth of their uplink, which nobody knows before. It feeds nobody any more as soon as
// that is measured, and in trees of later images from the beginning: the others wait little longer than they do without it.
func TestSlowUplink(t *testing.T) {
	var without time.Duration
	var with []time.Duration
	allFast := func(name string) {
		t.Run(name, func(t *testing.T) {
			without = max(without, spreadWith(t, up(t), name, func(*spread) *lab.Host { return nil }))
		})
	}
	allFast("before") // before and after, because the machine may be busy with something else for some of the time
	for name, match := range map[string]func(api.Tree, api.TreeMember) bool{"root": rootOf, "inner": innerOf} {
		t.Run(name, func(t *testing.T) {
			l := up(t)
			var slow *lab.Host
			first := spreadWith(t, l, "first-"+name, func(s *spread) *lab.Host {
				slow, _ = s.choose(t, match)
				s.weaken(t, slow)
				return slow
			})
			again := spreadWith(t, l, "again-"+name, func(s *spread) *lab.Host {
				s.isLeaf(t, slow)
				return slow
			})
			with = append(with, first, again)
		})
	}
	allFast("after")
	slices.Sort(with)
	if limit := without * 3 / 2; with[len(with)-2] > limit { // one may be longer for what the machine does besides
		t.Errorf("those who are fast have all after %v, want at most %v: all fast it takes up to %v", with, limit, without)
	}
}

// spreadWith spreads an image to all hosts, which takes several heartbeats. It lets choose who is to be a leaf at the end, as soon as it
// is mounted, and returns after what time all others have it.
func spreadWith(t *testing.T, l *lab.Lab, name string, choose func(*spread) *lab.Host) time.Duration {
	t.Helper()
	s := newSpreadOf(t, l, name, 96<<20)
	begin := time.Now()
	s.mount(t, s.Hosts()...)
	slow := choose(s)
	s.holds(t, 1, slices.DeleteFunc(slices.Clone(s.Hosts()), func(h *lab.Host) bool { return h == slow })...)
	took := time.Since(begin)
	t.Logf("all who are fast have all after %v", took)
	if slow != nil {
		s.isLeaf(t, slow)
	}
	s.complete(t, s.Hosts()...)
	s.egress(t, 1.6) // a slow root has read much that it could not pass on
	return took
}

// weaken gives a host a tenth of its uplink.
func (s *spread) weaken(t *testing.T, h *lab.Host) {
	t.Helper()
	must(t, h.Shape(context.WithoutCancel(t.Context()), lab.Link{Up: hostRate / 10, Down: hostRate}))
}

// isLeaf checks that a host feeds nobody in the image's tree. Somebody else must, or the tree would not be sound.
func (s *spread) isLeaf(t *testing.T, h *lab.Host) {
	t.Helper()
	tree := s.inTree(t, patience, h, s.Hosts()...)
	for _, m := range tree.Members {
		feeds := slices.Contains(m.Parents, "") || slices.ContainsFunc(tree.Members, func(c api.TreeMember) bool { return slices.Contains(c.Parents, m.Agent.ID) })
		switch {
		case is(m, h) && (feeds || m.Role != "leaf"):
			t.Errorf("%s, whose uplink is slow, is %s, feeds somebody or is a root: %t", h.Name, m.Role, feeds)
		case !is(m, h):
			t.Logf("%v is %s, feeds somebody or is a root: %t", m.Agent.Addrs, m.Role, feeds)
		}
	}
}
