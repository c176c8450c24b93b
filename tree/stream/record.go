package stream

import "time"

// record is what a Ladder knows of a candidate.
type record struct {
	mean, deviation time.Duration // of a block's time; 0: not known
	back            time.Time     // until when it is put back
	penalty         time.Duration // the last one, 0 after a success
}

// measure notes how long a block took.
func (r *record) measure(d time.Duration) {
	r.penalty = 0
	r.back = time.Time{}
	if r.mean == 0 {
		r.mean, r.deviation = d, d/2
		return
	}
	off := d - r.mean
	r.mean += off / 8
	r.deviation += (off.Abs() - r.deviation) / 4
}

// patience returns how long to wait for progress.
func (r *record) patience(floor, ceiling time.Duration) time.Duration {
	if r.mean == 0 {
		return min(2*floor, ceiling)
	}
	return min(max(r.mean+4*r.deviation, floor), ceiling)
}

// putBack makes the candidate wait for its next turn.
func (r *record) putBack(now time.Time, first time.Duration) {
	if now.Before(r.back) {
		return
	}
	r.penalty = min(max(2*r.penalty, first), 16*first)
	r.back = now.Add(r.penalty)
}

// budget allows so many extras per block.
type budget struct {
	share, burst, left float64
}

func newBudget(share, burst float64) budget { return budget{share, burst, burst} }

func (b *budget) add() { b.left = min(b.left+b.share, b.burst) }

func (b *budget) take() bool {
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
