package metadata

import (
	"fmt"
	"io"

	"github.com/xylem-project/xylem/blockfmt"
)

// Read reads an image of size bytes that WriteTo wrote.
func Read(r io.ReaderAt, size int64) (*Tree, error) {
	return nil, fmt.Errorf("read: %w", blockfmt.ErrUnsupported)
}
