package trees

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/hack/lab"
)

// TestFaults lets something fail in one lab after another while an image spreads. Each case leaves the lab in order.
func TestFaults(t *testing.T) {
	l := up(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, *spread)
	}{
		{"nothing", nothingFails},
		{"root", rootIsKilled},
		{"inner", innerIsKilled},
		{"scheduler", schedulerIsKilled},
		{"registry", registryVanishes},
		{"partition", networkIsDivided},
		{"alien", alienComes},
		{"revoked", agentIsRevoked},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newSpread(t, l, c.name)) })
	}
}

// All hosts want an image at the same moment: the registry is read once.
func nothingFails(t *testing.T, s *spread) {
	s.mount(t, s.Hosts()...)
	s.inTree(t, patience, s.Hosts()[2], s.Hosts()...)
	s.complete(t, s.Hosts()...)
	s.egress(t, 1.10)
	eventually(t, patience, "the tree shows that all have all", func() error {
		tree, err := s.tree(t.Context(), s.Hosts()[1])
		for _, m := range tree.Members {
			if len(m.Held) != tree.Stripes || !slices.Equal(m.Held, m.Total) || m.Total[0] == 0 {
				return errors.Join(err, fmt.Errorf("%v has %d of %d", m.Agent.Addrs, m.Held, m.Total))
			}
		}
		return err
	})
}

// A root is killed half-way: somebody else reads the rest from the registry, and again what only the root had, and what it had under way,
// which is up to eight blocks: much of this small image.
func rootIsKilled(t *testing.T, s *spread) {
	s.mount(t, s.Hosts()...)
	root, others := s.choose(t, rootOf)
	readers := s.startReading(t, others...)
	s.killHalfWay(t, root)
	s.complete(t, others...)
	readers.right(t, readTimeout+slack, others...)
	s.egress(t, 1.5)
	s.revive(t, root)
	s.complete(t, root)
	s.inTree(t, patience, root, s.Hosts()...)
	s.egress(t, 1.5)
}

// Somebody in the middle is killed: programs on other hosts do not notice.
func innerIsKilled(t *testing.T, s *spread) {
	s.mount(t, s.Hosts()...)
	inner, others := s.choose(t, innerOf)
	readers := s.startReading(t, others...)
	s.killHalfWay(t, inner)
	s.complete(t, others...)
	readers.right(t, slack, others...)
	s.inTree(t, patience, others[0], others...)
	s.egress(t, 1.3)
	s.revive(t, inner)
	s.complete(t, inner)
}

// The scheduler is killed half-way: trees go on feeding, and who comes anew reads the registry alone.
func schedulerIsKilled(t *testing.T, s *spread) {
	last := len(s.Hosts()) - 1
	early, late := s.Hosts()[:last], s.Hosts()[last]
	s.mount(t, early...)
	s.inTree(t, patience, early[0], early...)
	readers := s.startReading(t, early...)
	must(t, s.KillScheduler())
	s.mount(t, late)
	s.readable(t, late)
	s.complete(t, early...)
	readers.right(t, readTimeout+slack, early...)
	s.egress(t, 2.3)
	must(t, s.StartScheduler(t.Context()))
	s.inTree(t, 15*time.Second+slack, late, s.Hosts()...)
}

// The registry vanishes half-way: what one host has all can read, and other reads fail in time. When it is back, all is well.
func registryVanishes(t *testing.T, s *spread) {
	s.mount(t, s.Hosts()...)
	s.inTree(t, patience, s.Hosts()[0], s.Hosts()...)
	s.holds(t, 0.3, s.Hosts()...)
	must(t, s.Registry().StallLink(t.Context()))
	had := map[int]*lab.Host{}
	every := blockfmt.BlockSize / blockfmt.PageSize
	for page, of := range s.outcomes(t, func(page int) bool { return page%every == 0 }) {
		for h, err := range of {
			if err == nil {
				had[page] = h
			}
		}
	}
	t.Logf("without the registry, %d blocks of %d are there", len(had), len(s.data)/blockfmt.BlockSize)
	for page, of := range s.outcomes(t, func(page int) bool { return had[page] != nil }) {
		for h, err := range of {
			if err != nil {
				t.Errorf("%s read page %d, and %s cannot: %v", had[page].Name, page, h.Name, err)
			}
		}
	}
	must(t, s.Heal(t.Context()))
	s.complete(t, s.Hosts()...)
	s.egress(t, 1.3)
}

// The network is divided for a while: the half with the registry goes on, and the other one does when it is healed.
func networkIsDivided(t *testing.T, s *spread) {
	const during = 5 * time.Second
	s.mount(t, s.Hosts()...)
	s.inTree(t, patience, s.Hosts()[0], s.Hosts()...)
	with, without := s.Hosts()[:2], s.Hosts()[2:]
	readers := s.startReading(t, s.Hosts()...)
	must(t, s.Partition(t.Context(), append([]*lab.Host{s.Registry(), s.Scheduler()}, with...), without))
	<-time.After(during) // that is the fault
	must(t, s.Heal(t.Context()))
	s.complete(t, s.Hosts()...)
	readers.right(t, readTimeout+slack, with...)
	readers.bounded(t, readTimeout+slack, without...)
	s.egress(t, 2.3)
	s.inTree(t, patience, without[0], s.Hosts()...)
}
