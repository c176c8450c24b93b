package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/tree"
)

// claimTimeout bounds the claim of a tree, and the search for trees.
const claimTimeout = 5 * time.Second

// beginClaim starts to claim a tree. Callers hold mu.
func (k *keeper) beginClaim(name digest.Digest, ref string) *image {
	i := newImage(name, ref)
	k.images[name] = i
	k.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(k.running, claimTimeout)
		defer cancel()
		members, err := k.claim(ctx, i)
		k.mu.Lock()
		defer k.mu.Unlock()
		if err == nil {
			err = k.adopt(i, members)
		}
		if err != nil {
			k.log.Warn("cannot take a tree over", "image", name, "err", err)
			i.failure = err
			k.forget(i)
		}
		close(i.ready)
		k.metrics.trees.Set(float64(len(k.images)))
		k.kick(i)
	})
	return i
}

// claim raises the term of an image in this scheduler's name, and reads the members that the former owner left.
func (k *keeper) claim(ctx context.Context, i *image) ([]store.Item, error) {
	key := ownersPrefix + i.name.String()
	for range 3 { // somebody else may be claiming it in this moment
		items, err := k.store.Read(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnavailable, err)
		}
		former, revision := owner{}, int64(0)
		if len(items) > 0 {
			revision = items[0].Revision
			if former, err = decode[owner](items[0]); err != nil {
				return nil, err
			}
		}
		if former.Term >= maxTerm {
			return nil, fmt.Errorf("term of %s: %w", i.name, errOverflow)
		}
		record := owner{Term: former.Term + 1, Scheduler: k.self, Ref: former.Ref}
		if record.Ref == "" {
			record.Ref = i.record.Ref
		}
		written, err := k.store.Write(ctx, store.Tx{
			If:  []store.Condition{{Key: key, Revision: revision}, {Key: schedulersPrefix + k.self, Revision: store.Exists}},
			Put: []store.Item{item(key, record)},
		})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnavailable, err)
		}
		i.record, i.claim = record, written
		k.metrics.claims.Inc()
		if revision == 0 || former.Idle {
			return nil, nil
		}
		members, err := k.store.Read(ctx, membersOf(i.name))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnavailable, err)
		}
		return members, nil
	}
	return nil, &misdirected{image: i.name}
}

// adopt makes a tree of the members' records. Records that make no tree are of no use to anybody: the members are forgotten, learn so
// by their heartbeats, and enter again, with epochs that are later than all before.
func (k *keeper) adopt(i *image, items []store.Item) error {
	snap := tree.Snapshot{Stripes: k.cfg.Stripes, Epoch: tree.Epoch{Term: i.record.Term - 1, Seq: math.MaxUint64}}
	records := make([]member, 0, len(items))
	var err error
	for _, it := range items {
		var r member
		if r, err = decode[member](it); err != nil {
			break
		}
		records = append(records, r)
		snap.Members = append(snap.Members, r.Placed)
	}
	if err == nil {
		err = k.forest.Adopt(i.name.String(), snap, i.record.Term)
	}
	if err != nil {
		k.log.Error("the records of a tree are damaged, its members have to enter again", "image", i.name, "members", len(items), "err", err)
		for _, name := range names(items, membersOf(i.name)) {
			k.makeRoom(i)
			i.touch(tree.ID(name))
		}
		return k.forest.Adopt(i.name.String(), tree.Snapshot{Stripes: k.cfg.Stripes}, i.record.Term)
	}
	for _, r := range records {
		k.recall(i, r)
	}
	if len(records) > 0 {
		k.log.Info("took a tree over", "image", i.name, "members", len(records), "term", i.record.Term)
	}
	return nil
}

// recall notes a member that the store knows.
func (k *keeper) recall(i *image, r member) {
	now := time.Now()
	i.members[r.ID] = &membership{total: r.Total, listed: now}
	if k.agents[string(r.ID)] == nil {
		k.agents[string(r.ID)] = &agent{id: string(r.ID), peer: r.Peer, zone: r.Zone, seen: now, missing: true}
	}
}

// setLive says which schedulers live. Trees that others own now are dropped.
func (k *keeper) setLive(urls []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Equal(urls, k.live) {
		return
	}
	k.live = urls
	k.broadcast(api.Event{Schedulers: &urls})
	k.log.Info("schedulers that live", "schedulers", strings.Join(urls, " "))
	if k.leased && slices.Contains(urls, k.self) { // otherwise news of the own key is under way
		for _, i := range k.images {
			if to := rendezvous(i.name, urls); to != k.self && i.isOwned() {
				k.drop(i, to)
			}
		}
	}
	k.look()
}

// setLeased says whether the store knows that this scheduler lives. Without that, others that can reach it own its trees.
func (k *keeper) setLeased(leased bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leased = leased
	if leased {
		k.failing = false
		k.look()
		return
	}
	if len(k.live) > 1 {
		for _, i := range k.images {
			if i.isOwned() {
				k.drop(i, "")
			}
		}
	}
}

// look wakes the search for trees to take over.
func (k *keeper) look() {
	select {
	case k.survey <- struct{}{}:
	default:
	}
}

// surveyEvery is how often the search goes on without a reason.
const surveyEvery = 15 * time.Second

// takeOver claims the trees that belong to this scheduler and have members, and drops those that others have claimed, whenever
// schedulers come and go, until ctx ends.
func (k *keeper) takeOver(ctx context.Context) {
	timer := time.NewTicker(surveyEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.survey:
		}
		if err := k.compare(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("cannot look for trees to take over", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
				k.look()
			}
		}
	}
}

// compare reads who owns what and draws the conclusions.
func (k *keeper) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	items, err := k.store.Read(ctx, ownersPrefix)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mayChange() != nil {
		return nil
	}
	for n, name := range names(items, ownersPrefix) {
		record, err := decode[owner](items[n])
		if err != nil {
			return err
		}
		i, mine := k.images[digest.Digest(name)], rendezvous(digest.Digest(name), k.live) == k.self
		switch {
		case i != nil && i.isOwned() && !i.emptied && items[n].Revision > i.claim:
			k.drop(i, record.Scheduler)
		case i == nil && mine && !record.Idle:
			k.beginClaim(digest.Digest(name), record.Ref)
		}
	}
	return nil
}

// again is how long the store is left alone after it failed.
const again = 500 * time.Millisecond

// announce keeps this scheduler's key in the store until ctx ends.
func (k *keeper) announce(ctx context.Context) {
	told := false
	for ctx.Err() == nil {
		key := item(schedulersPrefix+k.self, map[string]string{"url": k.self})
		err := k.store.Hold(ctx, key, k.cfg.Lease.Duration, func() {
			told = false
			k.setLeased(true)
		})
		k.setLeased(false)
		if ctx.Err() != nil {
			return
		}
		k.log.Log(ctx, once(&told), "the state store does not know that this scheduler lives, still trying", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// once is a warning at first, and then for those who look for a fault.
func once(told *bool) slog.Level {
	if *told {
		return slog.LevelDebug
	}
	*told = true
	return slog.LevelWarn
}

// follow calls changed with the names below a prefix whenever they change, until ctx ends.
func (k *keeper) follow(ctx context.Context, prefix string, changed func([]string)) {
	told := false
	store.Follow(ctx, k.store, prefix, again, func(items []store.Item) {
		told = false
		changed(names(items, prefix))
	}, func(err error) {
		k.log.Log(ctx, once(&told), "cannot follow the state store, still trying", "prefix", prefix, "err", err)
	})
}
