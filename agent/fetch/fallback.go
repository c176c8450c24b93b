package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/xylem-project/xylem/blockfmt"
)

// Fallback returns a Source that asks the first source, on failure the next, and so on. When all fail, the error is of
// kind ErrTransient if any of them may succeed later, else of the last source's kind, and tells what the others said.
func Fallback(sources ...blockfmt.Source) blockfmt.Source { return fallback(sources) }

type fallback []blockfmt.Source

func (f fallback) Verified() bool {
	return !slices.ContainsFunc(f, func(src blockfmt.Source) bool { return !blockfmt.IsVerified(src) })
}

func (f fallback) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	var failed error
	for _, src := range f {
		stored, err := src.Block(ctx, ref)
		if err == nil {
			return stored, nil
		}
		switch {
		case failed == nil:
			failed = err
		case errors.Is(failed, blockfmt.ErrTransient) && !errors.Is(err, blockfmt.ErrTransient):
			failed = fmt.Errorf("%w; then %v", failed, err)
		default:
			failed = fmt.Errorf("%w; before that %v", err, failed)
		}
		if ctx.Err() != nil {
			return nil, failed
		}
	}
	if failed == nil {
		failed = fmt.Errorf("%v: nobody to ask: %w", ref, blockfmt.ErrNotFound)
	}
	return nil, failed
}
