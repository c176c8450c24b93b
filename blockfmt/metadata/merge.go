package metadata

import (
	"fmt"

	"github.com/xylem-project/xylem/blockfmt"
)

// Merge returns the tree that results from laying layers over each other, bottom first.
func Merge(layers []*Tree) (*Tree, error) {
	return nil, fmt.Errorf("merge: %w", blockfmt.ErrUnsupported)
}
