package blockfmt

import (
	"context"
	"fmt"
	"io"
)

// Image is a random-access view of a blob's uncompressed bytes: the "image data" of the specification's section 3.1.
// It keeps nothing; put a cache below it (a Store) or above it (a file of decompressed data).
type Image struct {
	index  *Index
	source Source
}

// NewImage returns the view of the blob with this index. The bytes that source gives are verified here.
func NewImage(index *Index, source Source) *Image { return &Image{index, source} }

// Size returns the uncompressed size in bytes.
func (im *Image) Size() int64 { return im.index.RawSize() }

// ReadAt fills p from the uncompressed bytes at off, with io.ReaderAt's rules for short reads. Blocks are read
// one after the other. Safe for concurrent use if the Source is.
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d of %s", off, im.index.Blob())
	}
	first, end := im.index.Find(off, int64(len(p)))
	n := 0
	for i := first; i < end; i++ {
		raw, err := im.ReadBlock(ctx, i)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], raw[off+int64(n)-im.index.Ref(i).RawOffset:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ReadBlock returns the raw bytes of block i, verified.
func (im *Image) ReadBlock(ctx context.Context, i int) ([]byte, error) {
	ref := im.index.Ref(i)
	stored, err := im.source.Block(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := Verify(ref, stored); err != nil {
		return nil, err
	}
	return Decode(ref, stored, nil)
}
