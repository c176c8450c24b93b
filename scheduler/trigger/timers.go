package trigger

import (
	"cmp"
	"container/heap"
)

// alarm is what a timer rings for.
type alarm interface {
	// ring is called when the timer's time has come; the timer is not set then.
	ring()
	// rank orders alarms of the same instant, so that the same events always have the same output.
	rank() (session, what string)
}

// timer is one that an alarm embeds.
type timer struct {
	at     instant
	place  int // in the heap, from 1; 0: not set
	target alarm
}

// timers is a heap of those that are set.
type timers []*timer

func (ts *timers) set(t *timer, at instant, target alarm) {
	if at == never {
		ts.stop(t)
		return
	}
	t.target = target
	if t.place == 0 {
		t.at = at
		heap.Push(ts, t)
	} else if t.at != at {
		t.at = at
		heap.Fix(ts, t.place-1)
	}
}

func (ts *timers) stop(t *timer) {
	if t.place != 0 {
		heap.Remove(ts, t.place-1)
	}
}

// next returns when the first one rings.
func (ts timers) next() instant {
	if len(ts) == 0 {
		return never
	}
	return ts[0].at
}

// Len, Less, Swap, Push and Pop are for package heap.
func (ts timers) Len() int { return len(ts) }

func (ts timers) Less(i, j int) bool {
	a, b := ts[i], ts[j]
	if a.at != b.at {
		return a.at < b.at
	}
	aSession, aWhat := a.target.rank()
	bSession, bWhat := b.target.rank()
	return cmp.Or(cmp.Compare(aSession, bSession), cmp.Compare(aWhat, bWhat)) < 0
}

func (ts timers) Swap(i, j int) {
	ts[i], ts[j] = ts[j], ts[i]
	ts[i].place, ts[j].place = i+1, j+1
}

func (ts *timers) Push(x any) {
	t := x.(*timer)
	t.place = len(*ts) + 1
	*ts = append(*ts, t)
}

func (ts *timers) Pop() any {
	last := len(*ts) - 1
	t := (*ts)[last]
	(*ts)[last] = nil
	*ts = (*ts)[:last]
	t.place = 0
	return t
}
