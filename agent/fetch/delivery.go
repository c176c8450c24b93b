package fetch

import (
	"context"
	"slices"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	// reach is how many bytes ahead in a transfer a demand read waits for: a request of its own takes as long, because it shares the link
	// with what the transfer has under way.
	reach = 2 * blockfmt.BlockSize
	// patience bounds that wait.
	patience = 500 * time.Millisecond
)

// delivery is a bulk transfer beside a Gate. All fields are under Gate.mu.
type delivery struct {
	gate    *Gate
	refs    []blockfmt.Ref // to come, in this order
	parcels map[blockfmt.Ref]*parcel
	urgent  int // demand reads that wait
}

// parcel is a block that somebody waits for.
type parcel struct {
	ref    blockfmt.Ref
	done   chan struct{} // closed when the block has come, or will not
	stored []byte        // verified; nil if it will not
}

// parcel returns what to wait for if the transfer brings the block, else nil; Gate.mu is held.
func (d *delivery) parcel(ref blockfmt.Ref) *parcel {
	if !slices.Contains(d.refs, ref) {
		return nil
	}
	p := d.parcels[ref]
	if p == nil {
		p = &parcel{ref: ref, done: make(chan struct{})}
		d.parcels[ref] = p
	}
	return p
}

// await returns the stored bytes of a parcel's block; nil if they do not come, or not as soon as a demand read wants them.
func (d *delivery) await(ctx context.Context, p *parcel) []byte {
	select {
	case <-p.done:
		return p.stored
	case <-ctx.Done():
		return nil
	case <-blockfmt.Demand(ctx):
	}
	if !d.hurry(p.ref) {
		return nil
	}
	defer d.relax()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.stored
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// hurry has the transfer go on beside demand reads if it brings the block soon. Call relax when the wait is over.
func (d *delivery) hurry(ref blockfmt.Ref) bool {
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	ahead := int64(0)
	for _, r := range d.refs {
		if ahead += r.Length; ahead > reach {
			return false
		}
		if r == ref {
			break
		}
	}
	if d.urgent++; d.urgent == 1 {
		d.gate.wake()
	}
	return true
}

func (d *delivery) relax() {
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	d.urgent--
}

// turn returns when the transfer may go on: no demand read is under way, or one waits for it.
func (d *delivery) turn(ctx context.Context) error {
	for {
		d.gate.mu.Lock()
		free, changed := d.gate.demand == 0 || d.urgent > 0, d.gate.changed
		d.gate.mu.Unlock()
		if free {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// brought hands the first block to come, verified, to those who wait for it.
func (d *delivery) brought(stored []byte) {
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	ref := d.refs[0]
	d.refs = d.refs[1:]
	if p := d.parcels[ref]; p != nil {
		p.stored = slices.Clone(stored)
		close(p.done)
		delete(d.parcels, ref)
	}
}

// close tells those who wait that nothing comes any more.
func (d *delivery) close() {
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	d.gate.remove(d)
	for _, p := range d.parcels {
		close(p.done)
	}
	d.refs, d.parcels = nil, nil
}
