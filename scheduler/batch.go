package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/tree"
)

// batch is events of one tree that are written together: while one batch is written, the events that arrive make up the next. It
// says which members are to be written and who is to be told, not how they are: that is put down once when it is sealed. So a
// member that a thousand events concern is written once a batch, and what is sent is what was written.
type batch struct {
	records map[tree.ID]bool
	places  map[place]tree.ID // to tell, with the old parent
	waiters []chan<- error

	// After sealing:
	txs       []store.Tx
	positions []addressed
	last      bool // the tree is over when this is written
}

// place is a member's place in a stripe.
type place struct {
	id     tree.ID
	stripe int
}

// addressed is a position and whom to send it.
type addressed struct {
	to string
	api.Position
}

const (
	// roomyBatch is how many members a batch may name before it is sealed to make room for another event, of which none but
	// the rarest names more than store.MaxOps minus this.
	roomyBatch = store.MaxOps / 2
	// writeTimeout bounds one attempt to write.
	writeTimeout = 2 * time.Second
)

// makeRoom seals the open batch if the next event might not fit into its transaction.
func (k *keeper) makeRoom(i *image) {
	if i.open != nil && len(i.open.records) >= roomyBatch {
		i.sealed = append(i.sealed, k.seal(i))
	}
}

// promise returns a channel that says when everything up to now is written, and sees to it that it will be.
func (k *keeper) promise(i *image) <-chan error {
	written := make(chan error, 1)
	b := i.batch()
	b.waiters = append(b.waiters, written)
	k.kick(i)
	return written
}

// kick sees to it that a task writes the batches of an image.
func (k *keeper) kick(i *image) {
	if !i.writing && i.isOwned() && k.running.Err() == nil {
		i.writing = true
		k.tasks.Go(func() { k.write(i) })
	}
}

// seal puts down what the open batch says.
func (k *keeper) seal(i *image) *batch {
	b := i.open
	i.open = nil
	claimed := []store.Condition{{Key: ownersPrefix + i.name.String(), Revision: i.claim}}
	tx := store.Tx{If: claimed}
	flush := func(most int) {
		if len(tx.Put)+len(tx.Delete) > most {
			b.txs = append(b.txs, tx)
			tx = store.Tx{If: claimed}
		}
	}
	for id := range b.records {
		if key := membersOf(i.name) + string(id); i.members[id] == nil {
			tx.Delete = append(tx.Delete, key)
		} else {
			tx.Put = append(tx.Put, item(key, k.recordOf(i, id)))
		}
		flush(store.MaxOps - 2)
	}
	if i.emptied && !b.last {
		b.last = true
		i.record.Idle = true
		flush(store.MaxOps - 3)
		tx.Put = append(tx.Put, item(ownersPrefix+i.name.String(), i.record))
	}
	flush(0)
	for at, old := range b.places {
		if p, ok := k.position(i, at, old); ok {
			b.positions = append(b.positions, addressed{string(at.id), p})
		}
	}
	return b
}

// recordOf returns a member as it is now.
func (k *keeper) recordOf(i *image, id tree.ID) member {
	t := k.forest.Tree(i.name.String())
	placed, _ := t.Placed(id)
	return member{Placed: placed, Peer: k.peer(id), Total: i.members[id].total}
}

// write is a task: it writes the batches of an image one after the other, and sends what they say.
func (k *keeper) write(i *image) {
	for {
		b := k.nextBatch(i)
		if b == nil {
			return
		}
		err := k.commit(k.running, i.name, b.txs)
		k.mu.Lock()
		if err != nil {
			k.log.Warn("lost a tree", "image", i.name, "err", err)
			k.drop(i, "")
		} else if i.isOwned() {
			k.sent(i, b)
		}
		k.mu.Unlock()
	}
}

// nextBatch returns what to write next; nil ends the task.
func (k *keeper) nextBatch(i *image) *batch {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(i.sealed) == 0 && i.open != nil && i.isOwned() {
		i.sealed = append(i.sealed, k.seal(i))
	}
	if len(i.sealed) == 0 || !i.isOwned() {
		i.writing = false
		return nil
	}
	return i.sealed[0]
}

// sent sends what a batch that was written says.
func (k *keeper) sent(i *image, b *batch) {
	i.sealed = i.sealed[1:]
	for _, p := range b.positions {
		if a := k.agents[p.to]; a != nil && a.session != nil {
			a.session.post(api.Event{Position: &p.Position})
		}
	}
	for _, w := range b.waiters {
		w <- nil
	}
	if b.last {
		k.forget(i)
	} else if t := k.forest.Tree(i.name.String()); t != nil && t.Epoch().Seq > maxSeq-1<<20 {
		k.drop(i, k.self) // members enter again, and with the new claim a new term begins
	}
}

// commit writes the transactions of a batch. While the store is away it tries again, and trees stand still. It returns an error if
// they cannot ever be written, because the tree is another's.
func (k *keeper) commit(ctx context.Context, name digest.Digest, txs []store.Tx) error {
	start := time.Now()
	for _, tx := range txs {
		for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
			err := k.attempt(ctx, tx)
			if err == nil {
				break
			}
			if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrInvalid) || ctx.Err() != nil {
				return err
			}
			k.log.Warn("cannot write a tree, trying again", "image", name, "err", err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(wait):
			}
		}
	}
	if len(txs) > 0 {
		k.metrics.writes.Observe(time.Since(start).Seconds())
	}
	return nil
}

func (k *keeper) attempt(ctx context.Context, tx store.Tx) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err := k.store.Write(ctx, tx)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failing = errors.Is(err, store.ErrUnavailable)
	return err
}

// forget takes an image out of the keeper: its tree is with nobody, or with another. Callers hold mu.
func (k *keeper) forget(i *image) {
	if i.isOver() {
		return
	}
	if k.images[i.name] == i {
		delete(k.images, i.name)
	}
	k.forest.Drop(i.name.String())
	close(i.over)
	k.metrics.trees.Set(float64(len(k.images)))
}

// drop gives up a tree that is another's now, and tells its members to ask there. Callers hold mu.
func (k *keeper) drop(i *image, to string) {
	k.forget(i)
	batches := i.sealed
	if i.open != nil {
		batches = append(batches, i.open)
	}
	for _, b := range batches {
		for _, w := range b.waiters {
			w <- fmt.Errorf("%w", &misdirected{i.name, to})
		}
	}
	i.sealed, i.open = nil, nil
	for id := range i.members {
		if a := k.agents[string(id)]; a != nil && a.session != nil {
			a.session.post(api.Event{Moved: &api.Moved{Image: i.name, Owner: to}})
		}
	}
}
