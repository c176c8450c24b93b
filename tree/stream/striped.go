package stream

import (
	"context"
	"fmt"

	"github.com/xylem-project/xylem/blockfmt"
)

// Striped returns a Source of an image's blocks that asks for each block in its stripe: stripes has one Source for each.
func Striped(image *Image, stripes ...blockfmt.Source) (blockfmt.Source, error) {
	if len(stripes) != image.StripeCount() {
		return nil, fmt.Errorf("image %s: %d sources for %d stripes", image.Digest(), len(stripes), image.StripeCount())
	}
	return striped{image, stripes}, nil
}

type striped struct {
	image   *Image
	stripes []blockfmt.Source
}

func (s striped) Verified() bool {
	for _, src := range s.stripes {
		if !blockfmt.IsVerified(src) {
			return false
		}
	}
	return true
}

func (s striped) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	i, ok := s.image.Find(ref)
	if !ok {
		return nil, fmt.Errorf("%v in image %s: %w", ref, s.image.Digest(), blockfmt.ErrNotFound)
	}
	return s.stripes[s.image.Stripe(i)].Block(ctx, ref)
}
