package agent

import (
	"context"
	"fmt"
	"io"

	"github.com/xylem-project/xylem/blockfmt"
)

// remote returns the Source of a place's blocks, not verified, and what stops it.
func (a *agent) remote(from place) (blockfmt.Source, func() error) {
	return blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
		body, err := from.Range(ctx, ref.Blob, ref.Offset, ref.Length)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		stored := make([]byte, ref.Length)
		if _, err := io.ReadFull(body, stored); err != nil {
			return nil, fmt.Errorf("%v: %w: %w", ref, err, blockfmt.ErrTransient)
		}
		return stored, nil
	}), func() error { return nil }
}
