package invoke

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/placement"
)

const (
	trimEvery      = time.Second
	rebalanceEvery = 5 * time.Second
)

// Prefix begins the IDs of instances that a scheduler starts, by its URL.
func Prefix(self string) string {
	sum := sha256.Sum256([]byte(self))
	return hex.EncodeToString(sum[:4]) + "-"
}

// Run keeps pools as large as they have to be until ctx ends. Then invocations that wait fail, and Run returns when nothing is
// started or stopped any more; instances go on running.
func (d *Dispatcher) Run(ctx context.Context) {
	trim, rebalance := time.NewTicker(trimEvery), time.NewTicker(rebalanceEvery)
	defer trim.Stop()
	defer rebalance.Stop()
	for {
		select {
		case <-ctx.Done():
			d.close()
			return
		case now := <-trim.C:
			d.trim(now)
		case <-rebalance.C:
			for _, p := range d.all() {
				p.rebalance()
			}
		}
	}
}

// rebalance has the policy move colours by the load that it measured.
func (p *pool) rebalance() {
	r, ok := p.policy.(placement.Rebalancer)
	if !ok {
		return
	}
	moves := r.Rebalance()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handOver(moves)
}

func (d *Dispatcher) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	for _, p := range d.all() {
		p.close()
	}
	d.tasks.Wait()
}

// trim makes every pool as large as it has to be.
func (d *Dispatcher) trim(now time.Time) {
	list, err := d.cfg.Functions.List("")
	if err != nil {
		return // not known yet
	}
	for _, fn := range list {
		if fn.Min > 0 && d.cfg.Mine(fn.Key()) {
			if _, err := d.pool(fn); err != nil {
				d.cfg.Log.Warn("function cannot be kept ready", "function", fn.ID(), "err", err)
			}
		}
	}
	for _, p := range d.all() {
		least, exists := d.wanted(p.fn)
		if p.trim(now, least, exists) {
			d.mu.Lock()
			delete(d.pools, poolKey(p.fn))
			d.mu.Unlock()
		}
	}
}

// wanted says how many instances of a version are always to be there, and whether there is such a version. Min counts for the newest and for those
// that have an alias.
func (d *Dispatcher) wanted(fn api.Function) (least int, exists bool) {
	about, err := d.cfg.Functions.Describe(fn.Namespace, fn.Name)
	if err != nil {
		return 0, errors.Is(err, function.ErrNotReady)
	}
	exists = slices.ContainsFunc(about.Versions, func(v api.Function) bool { return v.Version == fn.Version && v.Created.Equal(fn.Created) })
	named := fn.Version == about.Latest || slices.Contains(slices.Collect(maps.Values(about.Aliases)), fn.Version)
	if exists && named && d.cfg.Mine(fn.Key()) {
		least = fn.Min
	}
	return least, exists
}
