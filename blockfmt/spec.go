package blockfmt

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/opencontainers/go-digest"
)

// SpecRevision is the commit of erofs/erofs-image-spec (a draft) that this file implements. All of the draft's wire
// names and binary layout are in this file.
const SpecRevision = "640fd6a505cc24ca6f0800c38d11f4a53d4de147"

// Media types and annotations of the specification, sections 2.1 to 2.4.
const (
	MediaTypeEROFS      = "application/vnd.erofs"
	MediaTypeEROFSZstd  = "application/vnd.erofs+zstd"
	MediaTypeChunkIndex = "application/vnd.erofs.chunk-index.v1"

	AnnotationRole               = "org.erofs.role"
	AnnotationUncompressedDigest = "org.erofs.uncompressed-digest"
	AnnotationChunkIndexRange    = "org.erofs.chunk-index.range"
	AnnotationChunkIndexDigest   = "org.erofs.chunk-index.digest"
	AnnotationChunkIndexTarget   = "org.erofs.chunk-index.target"

	RoleDevice       = "device"
	RoleOverlayLower = "overlay-lower"
	RoleOverlayData  = "overlay-data"

	OSFeature = "erofs" // in os.features of config and platform, section 5.4
)

// The binary chunk index, section 3.4: a header and fixed-size entries, little-endian.
const (
	indexHeaderSize = 32
	indexEntrySize  = 16 + len(BlockID{})
	indexVersion    = 1
	hashSHA2        = 1
	// MaxBlocks bounds the entries of a chunk index that is read: 2 TiB of 512 KiB blocks, 192 MiB of index.
	MaxBlocks = 4 << 20
)

var indexMagic = [4]byte{0xCD, 0xE4, 0xEC, 0x67}

type indexEntry struct {
	offset    int64 // in the stored blob
	rawOffset int64
	id        BlockID
}

// Index is the chunk index of one blob: which blocks it consists of, in order. Immutable, safe for concurrent use.
type Index struct {
	blob    digest.Digest
	codec   Codec
	end     int64 // stored bytes of the blob that are blocks
	rawSize int64
	entries []indexEntry
}

// DecodeIndex reads the chunk index of the stored blob with the given digest. end is the offset in the blob at which its
// blocks end: the blob's size for a standalone index, the start of the index section for an embedded one.
//
// It returns ErrCorrupt for an index that contradicts itself or end, ErrUnsupported for one without SHA-256 checksums,
// with flags or a compression that this version does not know: its blob can only be read as a whole.
func DecodeIndex(data []byte, blob digest.Digest, end int64) (*Index, error) {
	fail := func(kind error, format string, args ...any) (*Index, error) {
		return nil, fmt.Errorf("chunk index of %s: %s: %w", blob, fmt.Sprintf(format, args...), kind)
	}
	if len(data) < indexHeaderSize || [4]byte(data[:4]) != indexMagic {
		return fail(ErrCorrupt, "no header")
	}
	le := binary.LittleEndian
	codec, rawSize, count := Codec(data[5]), le.Uint64(data[8:]), le.Uint32(data[16:])
	switch {
	case data[4] != indexVersion:
		return fail(ErrUnsupported, "version %d", data[4])
	case codec != CodecNone && codec != CodecZstd:
		return fail(ErrUnsupported, "compression type %d", codec)
	case le.Uint16(data[6:]) != 0:
		return fail(ErrUnsupported, "flags %#x", le.Uint16(data[6:]))
	case data[20] != hashSHA2 || int(data[21]) != len(BlockID{}):
		return fail(ErrUnsupported, "hash algorithm %d of %d bytes, need SHA-256", data[20], data[21])
	case [10]byte(data[22:32]) != [10]byte{}:
		return fail(ErrCorrupt, "reserved bytes are not zero")
	case count > MaxBlocks:
		return fail(ErrCorrupt, "%d entries", count)
	case uint64(len(data)) != indexHeaderSize+uint64(count)*uint64(indexEntrySize):
		return fail(ErrCorrupt, "%d bytes for %d entries", len(data), count)
	case rawSize > math.MaxInt64 || end < 0 || (count == 0 && rawSize != 0):
		return fail(ErrCorrupt, "%d entries for %d bytes", count, rawSize)
	}
	ix := &Index{blob: blob, codec: codec, end: end, rawSize: int64(rawSize), entries: make([]indexEntry, count)}
	for i := range ix.entries {
		e := data[indexHeaderSize+i*indexEntrySize:]
		ix.entries[i] = indexEntry{int64(le.Uint64(e)), int64(le.Uint64(e[8:])), BlockID(e[16:indexEntrySize])}
	}
	if err := ix.validate(); err != nil {
		return nil, err
	}
	return ix, nil
}

// validate checks that the entries tile the raw bytes from 0 and lie in ascending order, without overlap, before end.
func (ix *Index) validate() error {
	if len(ix.entries) > 0 && ix.entries[0].rawOffset != 0 {
		return fmt.Errorf("chunk index of %s: first block starts at %d: %w", ix.blob, ix.entries[0].rawOffset, ErrCorrupt)
	}
	previous := int64(0) // end of the block before
	for i := range ix.entries {
		ref := ix.Ref(i)
		if ref.Offset < previous || ref.Length <= 0 || ref.Length > MaxBlockSize || ref.RawLength <= 0 || ref.RawLength > MaxBlockSize ||
			ref.Offset > ix.end-ref.Length || ref.RawOffset > ix.rawSize-ref.RawLength {
			return fmt.Errorf("chunk index of %s: block %d is %d bytes at %d for %d bytes at %d: %w",
				ix.blob, i, ref.Length, ref.Offset, ref.RawLength, ref.RawOffset, ErrCorrupt)
		}
		previous = ref.Offset + ref.Length
	}
	return nil
}

// Encode returns the index in the specification's binary form, 32 + 48 bytes a block.
func (ix *Index) Encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, indexHeaderSize, indexHeaderSize+len(ix.entries)*indexEntrySize)
	copy(b, indexMagic[:])
	b[4], b[5] = indexVersion, byte(ix.codec)
	le.PutUint64(b[8:], uint64(ix.rawSize))
	le.PutUint32(b[16:], uint32(len(ix.entries)))
	b[20], b[21] = hashSHA2, byte(len(BlockID{}))
	for _, e := range ix.entries {
		b = le.AppendUint64(b, uint64(e.offset))
		b = le.AppendUint64(b, uint64(e.rawOffset))
		b = append(b, e.id[:]...)
	}
	return b
}
