package invoke

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
)

// How long no instance is started after starts that failed, one after the other: doubled each time.
const (
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
)

// stopTimeout bounds the wait for an instance's end.
const stopTimeout = time.Minute

// start starts an instance and gives it to those who wait, or tells them why there is none.
func (p *pool) start() {
	ctx, cancel := context.WithTimeout(p.d.running, p.fn.StartTimeout.Duration+startGrace)
	defer cancel()
	begin := time.Now()
	node, id, err := p.launch(ctx)
	p.d.metrics.started(time.Since(begin), err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting--
	if err != nil {
		p.failed(err)
		return
	}
	p.failures, p.backoff = 0, nil
	p.d.cfg.Log.Info("instance started", "function", p.fn.ID(), "instance", id, "peer", node.Peer, "took", time.Since(begin))
	if p.closed {
		p.d.do(func() { p.d.stop(node, id, p.fn) })
		return
	}
	p.add(node, id)
}

// startGrace is how much longer than the node this end waits for a start.
const startGrace = 5 * time.Second

// launch starts an instance on the first node that can.
func (p *pool) launch(ctx context.Context) (*fleet.Node, string, error) {
	var avoid []*fleet.Node
	var last error
	for {
		node, err := p.d.fleet.Reserve(p.fn, avoid)
		if err != nil {
			return nil, "", errors.Join(last, err)
		}
		id := p.d.newID()
		_, err = node.Start(ctx, id, p.fn)
		if err == nil {
			return node, id, nil
		}
		p.d.fleet.Release(node, p.fn)
		if fleet.IsKind(err, api.FailureNoRoom) {
			p.d.fleet.Full(node)
		} else if !errors.Is(err, fleet.ErrLost) || ctx.Err() != nil {
			return nil, "", fmt.Errorf("node %s: %w", node.Peer, err)
		}
		avoid, last = append(avoid, node), err
	}
}

// add takes in an instance that is ready. Callers hold mu.
func (p *pool) add(node *fleet.Node, id string) {
	i := &instance{number: p.next, id: id, node: node, used: time.Now()}
	p.next++
	p.instances[i.number] = i
	p.handOver(p.policy.Add(i.number))
	p.idle = append(p.idle, i)
	p.serve(i)
	p.tend()
}

// drop takes an instance out, whose places are not given any more. Callers hold mu.
func (p *pool) drop(i *instance) {
	if i.gone {
		return
	}
	i.gone = true
	delete(p.instances, i.number)
	p.idle = remove(p.idle, i)
	p.handOver(p.policy.Remove(i.number))
}

const (
	// roomAfter is how long nodes that had no room are not asked again.
	roomAfter = 250 * time.Millisecond
	// roomWait is how long an invocation waits for room on some node, as while agents connect to a scheduler that has just started.
	roomWait = 5 * time.Second
)

// failed says what a start's failure means for those who wait. Callers hold mu.
func (p *pool) failed(err error) {
	if p.d.running.Err() != nil {
		err = ErrClosed
	}
	now := time.Now()
	patient := time.Duration(0)
	if errors.Is(err, fleet.ErrNoRoom) || errors.Is(err, fleet.ErrNoNodes) {
		p.crowded, patient = now.Add(roomAfter), roomWait
		p.d.do(func() { p.d.makeRoom(p) })
	} else {
		p.d.cfg.Log.Warn("instance not started", "function", p.fn.ID(), "err", err)
		p.backoff = &BackoffError{Function: p.fn.ID(), Until: now.Add(min(lastBackoff, firstBackoff<<min(p.failures, 16))), Err: err}
		p.failures++
		err = p.backoff
	}
	if len(p.instances) == 0 && p.starting == 0 {
		p.fail(err, now.Add(-patient))
	}
}

// fail tells those who wait since then or longer that it is in vain. Callers hold mu.
func (p *pool) fail(err error, since time.Time) {
	p.waiting = slices.DeleteFunc(p.waiting, func(w *waiter) bool {
		late := !w.since.After(since)
		if late {
			w.got <- granted{err: err}
		}
		return late
	})
}

// trim stops the instances that nobody has used for long, and starts those that are always to be there. Of a version that exists no more
// none is kept, and the pool is closed when the last has gone; then trim returns true.
func (p *pool) trim(now time.Time, least int, exists bool) (over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range slices.Clone(p.idle) {
		if len(p.instances) <= least {
			break
		}
		if i.inFlight == 0 && (!exists || now.Sub(i.used) > p.fn.Keep.Duration) {
			p.drop(i)
			p.d.do(func() { p.d.stop(i.node, i.id, p.fn) })
		}
	}
	p.startUpTo(least - p.starting - len(p.instances))
	if !exists && len(p.instances) == 0 && p.starting == 0 && len(p.waiting) == 0 {
		p.closed = true
	}
	return p.closed
}

// lose takes out the instances of a node that is gone.
func (p *pool) lose(n *fleet.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range p.instances {
		if i.node == n {
			p.drop(i)
		}
	}
	p.tend()
}

// discard takes out an instance that did not do its work, and makes sure that it is gone.
func (p *pool) discard(i *instance) {
	p.mu.Lock()
	first := !i.gone
	p.drop(i)
	p.tend()
	p.mu.Unlock()
	if first {
		p.d.do(func() { p.d.stop(i.node, i.id, p.fn) })
	}
}

// close ends the pool; instances go on running, for the next scheduler to take up.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.fail(ErrClosed, time.Now())
	if p.timer != nil {
		p.timer.Stop()
	}
}
