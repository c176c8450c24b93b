package trigger

import (
	"fmt"
	"strconv"
)

// Redundant fires with the first K of every N objects. The other N-K are not passed on; with the next one a new round begins. Firings are called
// "1", "2", ... by the round.
type Redundant struct {
	K, N int // 1 <= K <= N <= 1,000,000
	// Rest says what becomes of those that run longer. Default ignore.
	Rest Rest
}

// Rest says what becomes of the runs that a Redundant does not need.
type Rest string

const (
	// RestIgnore lets them run: their objects are counted, and ignored.
	RestIgnore Rest = "ignore"
	// RestCancel cancels the runs of the rerun's source that have not delivered, those known for longest, at most as
	// many as the round still lacks. They count as if they had delivered.
	RestCancel Rest = "cancel"
)

// Kind implements Rule.
func (Redundant) Kind() string { return "redundant" }

func (r Redundant) check(report func(parameter, what string)) {
	if r.N < 1 || r.N > maxBatch {
		report("n", fmt.Sprintf("%d, want 1 to %d", r.N, maxBatch))
	}
	if r.K < 1 || r.K > r.N {
		report("k", fmt.Sprintf("%d, want 1 to n = %d", r.K, r.N))
	}
	switch r.Rest {
	case "", RestIgnore, RestCancel:
	default:
		report("rest", fmt.Sprintf("%.80q, want %q or %q", r.Rest, RestIgnore, RestCancel))
	}
}

func (r Redundant) prepare() prepared { return r }
func (Redundant) takes(Key) bool      { return true }
func (r Redundant) matcher() matcher  { return &race{rule: r, Round: 1} }

type race struct {
	rule  Redundant
	Round int      `json:"round"`
	Got   int      `json:"got"`  // objects of the round
	Seen  int      `json:"seen"` // objects of the round, and runs that put none any more
	Held  []Object `json:"held,omitempty"`
	// Out are the invocations that count already although they have put nothing: whatever comes of them after all is ignored.
	Out map[Invocation]bool `json:"out,omitempty"`
}

func (r *race) put(c *cell, o Object) {
	if r.Out[o.Source.Invocation] {
		c.ignore(o, "its source was given up")
		return
	}
	r.Got++
	if r.Got <= r.rule.K {
		r.Held = append(r.Held, o)
	} else {
		c.ignore(o, fmt.Sprintf("the first %d of %d are there", r.rule.K, r.rule.N))
	}
	if r.Got == r.rule.K {
		r.fire(c)
	}
	r.count(c)
}

func (r *race) fire(c *cell) {
	held := r.Held
	r.Held = nil
	c.fire(strconv.Itoa(r.Round), held)
	for _, id := range c.release(r.rule.N-r.Seen-1, r.rule.Rest == RestCancel) {
		r.giveUp(id)
		r.Seen++
	}
}

// lost is told of runs that will not deliver.
func (r *race) lost(c *cell, id Invocation) {
	r.giveUp(id)
	r.count(c)
}

func (r *race) giveUp(id Invocation) {
	if r.Out == nil {
		r.Out = map[Invocation]bool{}
	}
	r.Out[id] = true
}

// count counts an object or a run that puts none, and ends the round after N. One that has not fired then never will.
func (r *race) count(c *cell) {
	if r.Seen++; r.Seen < r.rule.N {
		return
	}
	for _, o := range r.Held {
		c.ignore(o, fmt.Sprintf("round %d has only %d of %d objects, its other sources were given up", r.Round, len(r.Held), r.rule.K))
	}
	r.Round, r.Got, r.Seen, r.Held = r.Round+1, 0, 0, nil
}

func (r *race) waits() string {
	if len(r.Held) == 0 {
		return ""
	}
	return fmt.Sprintf("has %d of the first %d of %d objects", len(r.Held), r.rule.K, r.rule.N)
}
