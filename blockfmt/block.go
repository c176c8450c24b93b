package blockfmt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/opencontainers/go-digest"
)

const (
	// BlockSize is the uncompressed size in bytes of the blocks that xylem writes. The last block of a blob may be shorter.
	BlockSize = 512 << 10
	// MaxBlockSize bounds, in bytes, both the uncompressed and the stored size of a block that xylem reads.
	MaxBlockSize = 16 << 20
	// PageSize is the alignment in bytes of a file's data within a blob, and the EROFS block size.
	PageSize = 4 << 10
)

// BlockID identifies a block: the SHA-256 of its stored bytes.
type BlockID [sha256.Size]byte

// IDOf returns the identity of a block with these stored bytes.
func IDOf(stored []byte) BlockID { return sha256.Sum256(stored) }

// ParseBlockID parses the 64 lower-case hexadecimal digits that String prints.
func ParseBlockID(s string) (BlockID, error) {
	var id BlockID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != s {
		return id, fmt.Errorf("block id %.80q is not 64 lower-case hexadecimal digits: %w", s, ErrCorrupt)
	}
	return BlockID(b), nil
}

func (id BlockID) String() string { return hex.EncodeToString(id[:]) }

// Codec says how the stored bytes of a block encode its raw bytes. The values are the chunk index's CompressionType.
type Codec uint8

const (
	CodecNone Codec = 0 // stored bytes are the raw bytes
	CodecZstd Codec = 1 // stored bytes are exactly one zstd frame
)

// Ref names one block and says where its stored bytes lie. Refs are comparable; two blobs may hold the same block (same ID)
// at different places, so caches key by ID, not by Ref.
type Ref struct {
	ID        BlockID
	Blob      digest.Digest // the stored blob that holds the block
	Number    int           // position in the blob's chunk index, from 0
	Offset    int64         // bytes from the start of the stored blob
	Length    int64         // stored bytes, at most MaxBlockSize
	RawOffset int64         // bytes from the start of the uncompressed image data
	RawLength int64         // uncompressed bytes, at most MaxBlockSize
	Codec     Codec
}

func (r Ref) String() string { return fmt.Sprintf("block %d of %s", r.Number, r.Blob) }

// A Source gives the stored bytes of blocks.
//
// Block returns exactly ref.Length bytes, which the caller may keep and must not change. Unless the implementation is
// Verified (or says that it verifies), the bytes may be wrong. Errors wrap one of this package's kinds.
// Safe for concurrent use.
type Source interface {
	Block(ctx context.Context, ref Ref) ([]byte, error)
}

// A Store is a Source that keeps blocks.
//
// Put keeps stored under ref.ID; it verifies first and returns ErrCorrupt for bytes that do not hash to ref.ID. Putting
// a block that is there already is no error. Block on a Store returns verified bytes, or ErrNotFound for a block that is
// absent, evicted or damaged on the medium.
type Store interface {
	Source
	Put(ctx context.Context, ref Ref, stored []byte) error
	// Has says whether Block is likely to find the block, without reading it.
	Has(ref Ref) bool
}

// SourceFunc makes a function a Source.
type SourceFunc func(ctx context.Context, ref Ref) ([]byte, error)

func (f SourceFunc) Block(ctx context.Context, ref Ref) ([]byte, error) { return f(ctx, ref) }

// A VerifiedSource is what a Source may be as well: one that knows whether all its blocks have been verified on the way to
// it, so that nobody hashes them again.
type VerifiedSource interface {
	Source
	Verified() bool
}

// IsVerified says whether the blocks that src gives are verified.
func IsVerified(src Source) bool {
	v, ok := src.(VerifiedSource)
	return ok && v.Verified()
}

// Verify reports whether stored is the block that ref names, wrapping ErrCorrupt if not.
func Verify(ref Ref, stored []byte) error {
	if int64(len(stored)) != ref.Length {
		return fmt.Errorf("%v: got %d bytes, want %d: %w", ref, len(stored), ref.Length, ErrCorrupt)
	}
	if got := IDOf(stored); got != ref.ID {
		return fmt.Errorf("%v: bytes hash to %v, want %v: %w", ref, got, ref.ID, ErrCorrupt)
	}
	return nil
}
