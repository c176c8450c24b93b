package scheduler

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/tree"
)

const (
	// strangerTimeout is how long an agent without session and trees is remembered.
	strangerTimeout = time.Minute
	// maxSteps bounds the roles that one sweep corrects, so that agents do not wait for it.
	maxSteps = 64
)

// watch sweeps until ctx ends.
func (k *keeper) watch(ctx context.Context) {
	ticker := time.NewTicker(k.cfg.Heartbeat.Duration / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			k.sweep(time.Now())
		}
	}
}

// sweep finds agents that failed, members that are not wanted any more, and roles to correct.
func (k *keeper) sweep(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgive(now)
	k.probe()
	if k.mayChange() != nil {
		return
	}
	k.expel()
	for _, a := range k.agents {
		k.judge(a, now)
	}
	for _, i := range k.images {
		k.tidy(i, now)
	}
	k.correct()
	k.metrics.agents.Set(float64(len(k.agents)))
}

// forgive gives agents the time back in which this process did not run, because it was stopped or the machine was too busy: it is
// the scheduler that was silent then.
func (k *keeper) forgive(now time.Time) {
	asleep := now.Sub(k.swept)
	if !k.swept.IsZero() && asleep > k.cfg.Heartbeat.Duration {
		for _, a := range k.agents {
			a.seen = a.seen.Add(asleep)
		}
		for _, i := range k.images {
			for _, m := range i.members {
				m.listed = m.listed.Add(asleep)
			}
		}
	}
	k.swept = now
}

// probe lets changes happen again when nothing is being written any more that could say that the store is back.
func (k *keeper) probe() {
	for _, i := range k.images {
		if i.writing {
			return
		}
	}
	k.failing = false
}

// judge takes an agent out of its trees if it is silent for too long, or shorter and others miss it too.
func (k *keeper) judge(a *agent, now time.Time) {
	silent, limit := now.Sub(a.seen), k.cfg.Timeout.Duration
	if a.missing {
		limit = k.cfg.Grace.Duration
	}
	if silent > k.cfg.Heartbeat.Duration*3/2 {
		a.silent = true
	}
	inTrees := k.forest.Images(tree.ID(a.id)) != nil
	switch {
	case inTrees && silent > limit:
		k.fail(a, "silent")
	case inTrees && a.silent && k.convicted(a, now):
		k.fail(a, "reported")
	case !inTrees && a.session == nil && silent > strangerTimeout:
		k.fail(a, "gone")
	}
}

// convicted tells whether enough others say that an agent gives them no blocks: two, or the only other one of the tree. That is not
// enough to condemn an agent that is heard of; it shortens the time that one has to speak up.
func (k *keeper) convicted(a *agent, now time.Time) bool {
	needed := 2
	for _, name := range k.forest.Images(tree.ID(a.id)) {
		needed = min(needed, max(1, k.forest.Tree(name).Len()-1))
	}
	for by, at := range a.reports {
		if now.Sub(at) > 2*k.cfg.Timeout.Duration {
			delete(a.reports, by)
		}
	}
	return len(a.reports) >= needed
}

// tidy takes members out who do not speak of the image any more, and gives up a tree that nobody entered.
func (k *keeper) tidy(i *image, now time.Time) {
	if !i.isOwned() || i.emptied {
		return
	}
	for id, m := range i.members {
		if now.Sub(m.listed) > 2*k.cfg.Grace.Duration {
			k.log.Debug("a member does not speak of the image", "image", i.name, "peer", id)
			k.leave(i, string(id))
		}
	}
	if len(i.members) == 0 && i.open == nil && len(i.sealed) == 0 && !i.emptied {
		if i.vacant.IsZero() {
			i.vacant = now
		} else if now.Sub(i.vacant) > k.cfg.Timeout.Duration {
			i.emptied = true
			i.batch()
			k.kick(i)
		}
	}
}

// correct lets the forest correct roles.
func (k *keeper) correct() {
	for range maxSteps {
		for _, i := range k.images {
			k.makeRoom(i) // whichever it is that the forest corrects
		}
		name, id, changes, ok := k.forest.Correct()
		if !ok {
			return
		}
		i := k.images[digest.Digest(name)]
		if m, ok := k.forest.Tree(name).Member(id); ok {
			k.log.Info("an agent has another role", "image", name, "peer", id, "role", m.Role)
		}
		i.touch(id)
		i.apply(changes)
		k.tellParents(i, id) // they may be roots, which do not ask whom they had better avoid
		k.kick(i)
		k.metrics.corrections.Inc()
	}
}
