package blockfmt

import (
	"fmt"
	"sort"

	"github.com/opencontainers/go-digest"
)

// Blob returns the digest of the stored blob that the index describes.
func (ix *Index) Blob() digest.Digest { return ix.blob }

// Len returns the number of blocks.
func (ix *Index) Len() int { return len(ix.entries) }

// RawSize returns the uncompressed size of the blob in bytes.
func (ix *Index) RawSize() int64 { return ix.rawSize }

// StoredSize returns the stored bytes of all blocks.
func (ix *Index) StoredSize() int64 {
	if len(ix.entries) == 0 {
		return 0
	}
	return ix.end - ix.entries[0].offset
}

// Ref returns block i, 0 <= i < Len().
func (ix *Index) Ref(i int) Ref {
	e := ix.entries[i]
	end, rawEnd := ix.end, ix.rawSize
	if i+1 < len(ix.entries) {
		end, rawEnd = ix.entries[i+1].offset, ix.entries[i+1].rawOffset
	}
	ref := Ref{ID: e.id, Blob: ix.blob, Number: i, Offset: e.offset, Length: end - e.offset,
		RawOffset: e.rawOffset, RawLength: rawEnd - e.rawOffset, Codec: ix.codec}
	if ix.codec == CodecNone {
		ref.Length = ref.RawLength
	}
	return ref
}

// Find returns the half-open range of blocks that cover the raw bytes [off, off+n), cut to the blob's size.
func (ix *Index) Find(off, n int64) (first, end int) {
	if off < 0 || n <= 0 || off >= ix.rawSize {
		return 0, 0
	}
	last := ix.rawSize
	if n < last-off {
		last = off + n
	}
	first = sort.Search(len(ix.entries), func(i int) bool { return ix.entries[i].rawOffset > off }) - 1
	end = sort.Search(len(ix.entries), func(i int) bool { return ix.entries[i].rawOffset >= last })
	return first, end
}

// An IndexBuilder collects the index of a blob while it is written. The zero value is ready for zstd blocks.
type IndexBuilder struct {
	plain       bool // the blocks are stored as they are
	stored, raw int64
	entries     []indexEntry
}

// Append adds the next block of the blob.
func (b *IndexBuilder) Append(id BlockID, storedLength, rawLength int64) {
	b.entries = append(b.entries, indexEntry{offset: b.stored, rawOffset: b.raw, id: id})
	b.stored += storedLength
	b.raw += rawLength
}

// Index returns the index of the stored blob with the given digest, whose blocks were appended.
func (b *IndexBuilder) Index(blob digest.Digest) (*Index, error) {
	ix := &Index{blob: blob, codec: CodecZstd, end: b.stored, rawSize: b.raw, entries: b.entries}
	if b.plain {
		ix.codec = CodecNone
	}
	if len(ix.entries) > MaxBlocks {
		return nil, fmt.Errorf("chunk index of %s: %d blocks, at most %d: %w", blob, len(ix.entries), MaxBlocks, ErrUnsupported)
	}
	return ix, ix.validate()
}
