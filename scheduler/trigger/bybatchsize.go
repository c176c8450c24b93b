package trigger

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// ByBatchSize fires with every N objects, in the order of their arrival, and with those that are there when the first of them has waited for Timeout.
// The end of the session fires with what is there. Firings are called "1", "2", ...
type ByBatchSize struct {
	N int // 1 to 1,000,000
	// Timeout 0: incomplete batches wait for the end of the session, which triggers across sessions may not.
	Timeout time.Duration
}

const maxBatch = 1_000_000

// Kind implements Rule.
func (ByBatchSize) Kind() string { return "by-batch-size" }

func (r ByBatchSize) check(report func(parameter, what string)) {
	if r.N < 1 || r.N > maxBatch {
		report("n", fmt.Sprintf("%d, want 1 to %d", r.N, maxBatch))
	}
	if r.Timeout < 0 || r.Timeout > maxTime {
		report("timeout", fmt.Sprintf("%v, want 0 to %v", r.Timeout, maxTime))
	}
}

func (r ByBatchSize) prepare() prepared { return r }
func (ByBatchSize) takes(Key) bool      { return true }
func (r ByBatchSize) matcher() matcher  { return &batch{rule: r, Due: never} }

type batch struct {
	rule  ByBatchSize
	Held  []Object `json:"held,omitempty"`
	Due   instant  `json:"due"`
	Fired int      `json:"fired"`
}

func (b *batch) put(c *cell, o Object) {
	if len(b.Held) == 0 && b.rule.Timeout > 0 {
		b.Due = c.ev.now.add(b.rule.Timeout)
	}
	b.Held = append(b.Held, o)
	if len(b.Held) >= b.rule.N {
		b.flush(c)
	}
}

func (b *batch) next() instant  { return b.Due }
func (b *batch) expire(c *cell) { b.flush(c) }

func (b *batch) flush(c *cell) {
	if len(b.Held) == 0 {
		return
	}
	held := b.Held
	b.Held, b.Due = nil, never
	b.Fired++
	c.fire(strconv.Itoa(b.Fired), held)
}

func (b *batch) withdraw(id Session) {
	b.Held = slices.DeleteFunc(b.Held, func(o Object) bool { return o.Session == id })
	if len(b.Held) == 0 {
		b.Due = never
	}
}

func (b *batch) check(instant) error {
	if len(b.Held) == 0 && b.Due != never {
		return errors.New("its batch is empty, but would be due")
	}
	return nil
}

func (b *batch) waits() string {
	if len(b.Held) == 0 {
		return ""
	}
	return fmt.Sprintf("has %d of %d objects", len(b.Held), b.rule.N)
}
