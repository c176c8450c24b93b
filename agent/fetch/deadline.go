package fetch

import (
	"context"
	"fmt"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// Deadline returns a Source whose reads end within timeout, with an ErrTransient if next has nothing by then. next
// must heed its context; a Coalescer does, whatever the Sources below it do.
func Deadline(next blockfmt.Source, timeout time.Duration) blockfmt.Source {
	return deadline{next, timeout}
}

type deadline struct {
	next    blockfmt.Source
	timeout time.Duration
}

func (d deadline) Verified() bool { return blockfmt.IsVerified(d.next) }

func (d deadline) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	return within(ctx, d.next, ref, d.timeout)
}

// Promote passes on what Coalescer.Promote does.
func (d deadline) Promote(ref blockfmt.Ref) {
	if p, ok := d.next.(interface{ Promote(blockfmt.Ref) }); ok {
		p.Promote(ref)
	}
}

// within reads with a bound on time, which shows as ErrTransient.
func within(ctx context.Context, next blockfmt.Source, ref blockfmt.Ref, timeout time.Duration) ([]byte, error) {
	late := fmt.Errorf("no bytes within %v: %w", timeout, blockfmt.ErrTransient)
	bounded, cancel := context.WithTimeoutCause(ctx, timeout, late)
	defer cancel()
	stored, err := next.Block(bounded, ref)
	if err != nil && ctx.Err() == nil && context.Cause(bounded) == late {
		return nil, fmt.Errorf("%v: %w", ref, late)
	}
	return stored, err
}
