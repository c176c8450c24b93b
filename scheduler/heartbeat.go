package scheduler

import (
	"fmt"
	"slices"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree"
)

// heartbeat notes how an agent is and what it reports. The answer names images in whose trees it is not, so that it enters again.
func (k *keeper) heartbeat(peer, session string, h api.Heartbeat) (r api.HeartbeatResponse, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, err := k.current(peer, session)
	if err != nil {
		return r, err
	}
	if err := k.machine(h); err != nil {
		return r, err
	}
	a.alive()
	k.describe(a, h)
	k.metrics.heartbeats.Inc()
	for _, m := range h.Images {
		i := k.images[m.Image]
		if i == nil || !i.isOwned() || i.members[tree.ID(peer)] == nil {
			r.Unknown = append(r.Unknown, m.Image)
			continue
		}
		if err := k.progress(i, a, m); err != nil {
			return r, err
		}
	}
	return r, nil
}

// progress notes how an agent gets on with one image.
func (k *keeper) progress(i *image, a *agent, m api.Membership) error {
	id, t, known := tree.ID(a.id), k.forest.Tree(i.name.String()), i.members[tree.ID(a.id)]
	known.listed = time.Now()
	if m.Held != nil {
		if err := t.Report(id, m.Held); err != nil {
			return fmt.Errorf("%w: heartbeat: %w", errInvalid, err)
		}
	}
	if len(m.Total) > 0 {
		known.total = slices.Clone(m.Total)
	}
	known.rates = slices.Clone(m.Rates)
	k.remind(i, t, id, m.Epochs)
	for _, failed := range m.Failed {
		k.reported(i, failed, a.id)
	}
	k.complain(i, a, m)
	return nil
}

// complain notes what a member says of others that concerns whom they should feed.
func (k *keeper) complain(i *image, a *agent, m api.Membership) {
	known := i.members[tree.ID(a.id)]
	for _, peer := range m.CutOff {
		if !slices.Contains(known.cutOff, peer) {
			k.log.Warn("an agent sent wrong bytes or broke the protocol", "peer", peer, "to", a.id, "image", i.name)
			k.metrics.cutOff.Inc()
		}
	}
	known.cutOff = slices.Clone(m.CutOff)
	c := tree.Complaint{At: time.Now(), Unreachable: treeIDs(m.Failed), CutOff: treeIDs(m.CutOff)}
	for _, peer := range k.forest.Complain(i.name.String(), tree.ID(a.id), c) {
		k.log.Warn("an agent is to feed nobody for a while: it is of no use to another, or cannot reach it", "peer", peer, "says", a.id, "image", i.name)
	}
}

// remind tells a member its position in stripes where it does not know the latest, or has others as backups now. An epoch that
// is later than all of the tree is of a tree that nobody knows of any more; the scheduler says what it knows.
func (k *keeper) remind(i *image, t *tree.Tree, id tree.ID, epochs []uint64) {
	attachments, err := t.Attachments(id)
	if err != nil {
		return
	}
	told := false
	for stripe, a := range attachments {
		behind := stripe < len(epochs) && epochs[stripe] != i.wire(a.Epoch)
		if behind || k.stale(i, t, place{id, stripe}) {
			i.tell(id, stripe, "")
			told = true
		}
	}
	if told {
		k.kick(i)
	}
}

// reported notes that a member says that another gives it no blocks.
func (k *keeper) reported(i *image, failed, by string) {
	a := k.agents[failed]
	if a == nil || failed == by || i.members[tree.ID(failed)] == nil {
		return
	}
	if a.reports == nil {
		a.reports = map[string]time.Time{}
	}
	a.reports[by] = time.Now()
	if a.silent && k.convicted(a, time.Now()) && k.mayChange() == nil {
		k.fail(a, "reported")
	}
}
