package metadata

import (
	"fmt"
	"io"

	"github.com/xylem-project/xylem/blockfmt"
)

// WriteTo writes the tree as an EROFS image without file data and returns the bytes written.
func (t *Tree) WriteTo(w io.Writer) (int64, error) {
	return 0, fmt.Errorf("write: %w", blockfmt.ErrUnsupported)
}
