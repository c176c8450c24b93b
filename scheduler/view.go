package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree"
)

// view returns a tree as it is now.
func (k *keeper) view(name digest.Digest) (api.Tree, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := k.images[name]
	if i == nil || !i.isOwned() {
		if owner := rendezvous(name, k.live); owner != k.self {
			return api.Tree{}, &misdirected{name, owner}
		}
		return api.Tree{}, fmt.Errorf("tree of %s: %w", name, errNotFound)
	}
	v := api.Tree{Image: name, Ref: i.record.Ref, Owner: k.self, Stripes: k.cfg.Stripes, Members: []api.TreeMember{}}
	t := k.forest.Tree(name.String())
	if t == nil {
		return v, nil
	}
	depths := make([]map[tree.ID]int, k.cfg.Stripes)
	for stripe := range depths {
		depths[stripe] = maps.Collect(t.Walk(stripe))
	}
	for _, m := range t.Snapshot().Members {
		v.Members = append(v.Members, k.viewMember(i, m, depths))
	}
	return v, nil
}

func (k *keeper) viewMember(i *image, m tree.Placed, depths []map[tree.ID]int) api.TreeMember {
	known := i.members[m.ID]
	v := api.TreeMember{
		Agent: k.peer(m.ID), Zone: m.Zone, Role: m.Role.String(), Held: m.Held, Total: slices.Clone(known.total), Rates: slices.Clone(known.rates),
	}
	if a := k.agents[string(m.ID)]; a != nil {
		v.Seen = a.seen
	}
	for stripe, at := range m.Attachments {
		v.Parents = append(v.Parents, string(at.Parent))
		v.Depths = append(v.Depths, depths[stripe][m.ID])
	}
	return v
}

// list returns the trees of the cluster that have members.
func (k *keeper) list(ctx context.Context) ([]api.TreeInfo, error) {
	items, err := k.store.Read(ctx, ownersPrefix)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	all := []api.TreeInfo{}
	for n, name := range names(items, ownersPrefix) {
		record, err := decode[owner](items[n])
		if err != nil {
			return nil, err
		}
		if !record.Idle {
			all = append(all, api.TreeInfo{Image: digest.Digest(name), Ref: record.Ref, Owner: record.Scheduler})
		}
	}
	return all, nil
}

// listAgents returns the agents that this scheduler knows.
func (k *keeper) listAgents() []api.AgentInfo {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := []api.AgentInfo{}
	for _, a := range k.agents {
		images := k.forest.Images(tree.ID(a.id))
		all = append(all, api.AgentInfo{
			Agent: a.peer, Zone: a.zone, Seen: a.seen, Session: a.session != nil, Trees: len(images), Children: k.forest.Load(tree.ID(a.id)),
		})
	}
	slices.SortFunc(all, func(a, b api.AgentInfo) int { return strings.Compare(a.Agent.ID, b.Agent.ID) })
	return all
}
