package fetch

import (
	"context"

	"github.com/xylem-project/xylem/blockfmt"
)

// Verified returns a Source of right bytes only: others are ErrCorrupt.
func Verified(src blockfmt.Source) blockfmt.Source { return verified{src} }

type verified struct{ next blockfmt.Source }

func (v verified) Verified() bool { return true }

func (v verified) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	stored, err := v.next.Block(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := blockfmt.Verify(ref, stored); err != nil {
		return nil, err
	}
	return stored, nil
}
