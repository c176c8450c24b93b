package tree

import (
	"maps"
	"slices"
	"time"
)

const (
	// sentence is for how many of its heartbeats a machine that was slow or blamed feeds nobody: ten minutes or so. Then it is tried
	// again.
	sentence = 600
	// strikes is how many heartbeats in a row must show that a machine is slow that was not a while ago.
	strikes = 3
	// patience is for how long a member tries in vain to reach its parent until that has consequences: longer than machines that are dead
	// are members. Attempts further apart than that are not counted together.
	patience = 4 * time.Second
)

// attempts are those of a member to reach another, all of them in vain.
type attempts struct{ first, last time.Time }

// compare finds the machines that are slow.
func (f *Forest) compare() {
	if !f.measured {
		return
	}
	f.measured = false
	typical := f.typical()
	var changed []ID
	for id, m := range f.machines {
		if f.judge(m, typical) != m.slow {
			changed = append(changed, id)
		}
	}
	slices.Sort(changed)
	for _, id := range changed {
		m := f.machines[id]
		m.slow = !m.slow
		f.enqueue(m)
	}
}

// typical returns what a quarter of the uplinks are known to carry. It is not the mean, nor the median: whoever is below a slow machine
// sends no more than that, however much it could.
func (f *Forest) typical() int64 {
	var rates []int64
	for _, m := range f.machines {
		if rate := max(m.Uplink, m.Sent); rate > 0 {
			rates = append(rates, rate)
		}
	}
	if len(rates) == 0 {
		return 0
	}
	slices.Sort(rates)
	return rates[len(rates)*3/4]
}

// judge tells whether a machine is slow. Of one that sent more a while ago that must show in more than one heartbeat: its children may
// have been busy with something else.
func (f *Forest) judge(m *machine, typical int64) bool {
	slow := f.isSlow(m, typical)
	if m.heard {
		m.heard = false
		m.strikes++
	}
	if !slow {
		m.strikes = 0
	}
	return slow && (m.slow || m.strikes >= strikes || m.Sent < typical/2)
}

// isSlow: below a sixth of what is typical (a window at its least gets a fifth of a link that is full of others), and until it is above half of it.
func (f *Forest) isSlow(m *machine, typical int64) bool {
	switch {
	case m.Uplink == 0:
		return m.slow
	case m.slow:
		return m.Uplink < typical/2
	default:
		return m.Uplink < typical/6 && f.couldTakeMore(m, typical)
	}
}

// couldTakeMore tells whether one of those who had to wait for a machine is known to receive twice what it would if all its parents fed
// it as the machine does: so it is the machine's fault. Who keeps its own children waiting is no witness, because its full uplink holds up what
// it acknowledges.
func (f *Forest) couldTakeMore(m *machine, typical int64) bool {
	if len(m.Waiting) == 0 {
		return true
	}
	pace := m.Uplink / int64(len(m.Waiting)) * int64(f.config.Stripes)
	return slices.ContainsFunc(m.Waiting, func(id ID) bool {
		child := f.machines[id]
		return child != nil && child.Received >= 2*pace && (child.Uplink == 0 || child.Uplink >= typical/2)
	})
}

// serve counts a heartbeat of a machine that is to feed nobody for a time.
func (m *machine) serve() {
	if !m.slow && !m.blamed && !m.accused {
		m.sentence = 0
	} else if m.sentence++; m.sentence > sentence {
		m.slow, m.blamed, m.accused, m.sentence = false, false, false, 0
	}
}

// Complaint is what a member of an image's tree says of others in a heartbeat.
type Complaint struct {
	At          time.Time
	Unreachable []ID // whom it tried in vain to reach since its last one
	CutOff      []ID // who sent it wrong bytes or broke the protocol
}

// Complain notes what a member says, and returns who is to feed nobody because of it; Step does what follows. A member has a say on
// who feeds it, once. It may be wrong or lie, so nobody leaves the tree for it. Where it cannot reach its parent for long, neither of
// them is to feed others: it is not known whose fault it is, and who is not fed has nothing to give.
func (f *Forest) Complain(image string, by ID, c Complaint) (blamed []ID) {
	m := f.machines[by]
	if m == nil || m.nodes[image] == nil {
		return nil
	}
	for _, id := range slices.Sorted(slices.Values(c.CutOff)) {
		if f.mayBlame(image, id, m) {
			blamed = append(blamed, f.blame(id)...)
		}
	}
	for _, id := range m.nodes[image].inVain(c) {
		if f.mayBlame(image, id, m) {
			blamed = append(blamed, f.blame(id, by)...)
		}
	}
	return blamed
}

// inVain notes whom a member tried to reach, and returns whom it did for long.
func (n *node) inVain(c Complaint) (long []ID) {
	maps.DeleteFunc(n.trying, func(_ ID, a attempts) bool { return c.At.Sub(a.last) > patience })
	for _, id := range slices.Sorted(slices.Values(c.Unreachable)) {
		if n.trying == nil {
			n.trying = map[ID]attempts{}
		}
		a := n.trying[id]
		if a.first.IsZero() {
			a.first = c.At
		}
		a.last = c.At
		n.trying[id] = a
		if c.At.Sub(a.first) >= patience {
			long = append(long, id)
		}
	}
	return long
}

// mayBlame tells whether a machine has a say on another, which it has once, and takes note of that.
func (f *Forest) mayBlame(image string, id ID, by *machine) bool {
	t := f.trees[image]
	feeds := slices.ContainsFunc(t.stripes, func(s *stripe) bool {
		parent, ok := t.Parent(by.ID, s.number)
		return ok && parent == id && id != Registry
	})
	if by.accused || !feeds {
		return false
	}
	by.accused = true
	return true
}

// blame has machines feed nobody, and returns for whom that is new.
func (f *Forest) blame(ids ...ID) (blamed []ID) {
	for _, id := range ids {
		if m := f.machines[id]; !m.blamed {
			m.blamed = true
			f.enqueue(m)
			blamed = append(blamed, id)
		}
	}
	return blamed
}

// Avoid tells whether a machine is not to be asked for blocks if that can be helped: because it is slow, or was blamed.
func (f *Forest) Avoid(id ID) bool {
	m := f.machines[id]
	return m != nil && m.avoided()
}

func (m *machine) avoided() bool { return m.slow || m.blamed }
