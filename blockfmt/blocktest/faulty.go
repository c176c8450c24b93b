package blocktest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// A Fault is one way in which a Source can fail to give a block.
type Fault int

const (
	None       Fault = iota
	WrongBytes       // right length, one bit flipped
	TooShort         // the block's beginning only, as from a truncated body
	TooLong          // the block and more
	Empty            // no bytes and no error
	Stall            // nothing until the context ends; returns its error
	NotFound         // the error kinds
	Corrupt
	Transient
	Denied
	Unsupported
)

// Faults are all but None, with their names.
func Faults() []Fault {
	return []Fault{WrongBytes, TooShort, TooLong, Empty, Stall, NotFound, Corrupt, Transient, Denied, Unsupported}
}

func (f Fault) String() string {
	names := []string{"none", "wrong bytes", "too short", "too long", "empty", "stall", "not found", "corrupt", "transient", "denied", "unsupported"}
	return names[f]
}

// Kind returns the kind of error that a verifying reader sees: nil for None, context.DeadlineExceeded or
// context.Canceled is up to the context for Stall.
func (f Fault) Kind() error {
	switch f {
	case WrongBytes, TooShort, TooLong, Empty, Corrupt:
		return blockfmt.ErrCorrupt
	case NotFound:
		return blockfmt.ErrNotFound
	case Transient:
		return blockfmt.ErrTransient
	case Denied:
		return blockfmt.ErrDenied
	case Unsupported:
		return blockfmt.ErrUnsupported
	}
	return nil
}

// Faulty is a Source that fails as Plan says, else gives what Next gives.
type Faulty struct {
	Next blockfmt.Source
	Plan func(ref blockfmt.Ref, call int) Fault // call counts from 0 over all blocks
	mu   sync.Mutex
	n    int
}

// Always returns a Faulty that fails every time in the same way.
func Always(next blockfmt.Source, f Fault) *Faulty {
	return &Faulty{Next: next, Plan: func(blockfmt.Ref, int) Fault { return f }}
}

// FirstCalls returns a Faulty whose first n calls fail.
func FirstCalls(next blockfmt.Source, n int, f Fault) *Faulty {
	return &Faulty{Next: next, Plan: func(_ blockfmt.Ref, call int) Fault {
		if call < n {
			return f
		}
		return None
	}}
}

func (s *Faulty) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	s.mu.Lock()
	call := s.n
	s.n++
	s.mu.Unlock()
	fault := s.Plan(ref, call)
	switch fault {
	case Stall:
		<-ctx.Done()
		return nil, fmt.Errorf("%v: stalled: %w", ref, ctx.Err())
	case NotFound, Corrupt, Transient, Denied, Unsupported:
		return nil, fmt.Errorf("%v: planned fault: %w", ref, fault.Kind())
	}
	stored, err := s.Next.Block(ctx, ref)
	if err != nil {
		return nil, err
	}
	return fault.Apply(stored), nil
}

// Apply returns the bytes as the fault changes them, in a new slice.
func (f Fault) Apply(stored []byte) []byte {
	stored = slices.Clone(stored)
	switch f {
	case WrongBytes:
		stored[len(stored)/2] ^= 1
	case TooShort:
		stored = stored[:len(stored)-1]
	case TooLong:
		stored = append(stored, 0)
	case Empty:
		stored = nil
	}
	return stored
}

// Counting is a Source that counts what is asked of Next.
type Counting struct {
	Next blockfmt.Source
	mu   sync.Mutex
	per  map[blockfmt.BlockID]int
}

func (c *Counting) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	c.mu.Lock()
	if c.per == nil {
		c.per = map[blockfmt.BlockID]int{}
	}
	c.per[ref.ID]++
	c.mu.Unlock()
	return c.Next.Block(ctx, ref)
}

// Of returns how often a block was asked for.
func (c *Counting) Of(ref blockfmt.Ref) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.per[ref.ID]
}

// Total returns how often any block was asked for.
func (c *Counting) Total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.per {
		n += k
	}
	return n
}
