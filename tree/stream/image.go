package stream

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Limits of images that travel.
const (
	MaxBlocks  = 16 << 20 // blocks of an image
	MaxStripes = 16       // stripes of an image
)

// An Image is the list of an image's blocks, numbered from 0 over all its blobs in order. Both ends of an edge have the same
// list, because the chunk indexes are bound by digest to the image's manifest; so blocks travel under their numbers.
// Immutable.
type Image struct {
	digest  digest.Digest
	indexes []*blockfmt.Index
	first   []int // number of each index's first block
	blocks  int
	blobs   map[digest.Digest]int // position in indexes
	stripes int
}

// NewImage returns the image with this manifest digest, whose blocks travel in so many stripes: block i in stripe i mod
// stripes.
func NewImage(manifest digest.Digest, stripes int, indexes ...*blockfmt.Index) (*Image, error) {
	if err := manifest.Validate(); err != nil {
		return nil, fmt.Errorf("image %q: %w", manifest, err)
	}
	if stripes < 1 || stripes > MaxStripes {
		return nil, fmt.Errorf("image %s: %d stripes, want 1 to %d", manifest, stripes, MaxStripes)
	}
	im := &Image{digest: manifest, indexes: indexes, blobs: map[digest.Digest]int{}, stripes: stripes}
	for at, ix := range indexes {
		if _, again := im.blobs[ix.Blob()]; !again {
			im.blobs[ix.Blob()] = at
		}
		im.first = append(im.first, im.blocks)
		im.blocks += ix.Len()
	}
	if im.blocks > MaxBlocks {
		return nil, fmt.Errorf("image %s: %d blocks, at most %d: %w", manifest, im.blocks, MaxBlocks, blockfmt.ErrUnsupported)
	}
	return im, nil
}

// Digest returns the digest of the image's manifest.
func (im *Image) Digest() digest.Digest { return im.digest }

// Len returns the number of blocks.
func (im *Image) Len() int { return im.blocks }

// StripeCount returns the number of stripes.
func (im *Image) StripeCount() int { return im.stripes }

// Stripe returns the stripe that block i travels in.
func (im *Image) Stripe(i int) int { return i % im.stripes }

// Ref returns block i, 0 <= i < Len().
func (im *Image) Ref(i int) blockfmt.Ref {
	at := len(im.first) - 1
	for im.first[at] > i {
		at--
	}
	return im.indexes[at].Ref(i - im.first[at])
}

// Find returns the number of a block; false if the image does not have it.
func (im *Image) Find(ref blockfmt.Ref) (int, bool) {
	at, ok := im.blobs[ref.Blob]
	if !ok || ref.Number < 0 || ref.Number >= im.indexes[at].Len() || im.indexes[at].Ref(ref.Number).ID != ref.ID {
		return 0, false
	}
	return im.first[at] + ref.Number, true
}

// Stripes is a set of stripes.
type Stripes uint16

// StripesOf returns the set of the given stripes.
func StripesOf(stripes ...int) (set Stripes) {
	for _, s := range stripes {
		set |= 1 << s
	}
	return set
}

// Has says whether a stripe is in the set.
func (s Stripes) Has(stripe int) bool { return s&(1<<stripe) != 0 }
