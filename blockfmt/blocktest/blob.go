// Package blocktest tests what carries blocks: conformance suites for blockfmt.Source and blockfmt.Store, a Store in
// memory, made-up blobs, and Sources that fail in the ways that registries, peers and disks do.
//
// It is imported by tests only.
package blocktest

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// A Blob is a made-up blob with everything that is known about it.
type Blob struct {
	Raw    []byte          // uncompressed
	Stored []byte          // zstd frames, one after the other
	Index  *blockfmt.Index // of Stored
}

// NewBlob returns a blob of size uncompressed bytes, cut into blocks of at most blockSize bytes, half of them hard to
// compress. The same arguments give the same blob.
func NewBlob(seed uint64, size, blockSize int) *Blob {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic(err) // constant options
	}
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	b := &Blob{Raw: make([]byte, size)}
	var builder blockfmt.IndexBuilder
	for start := 0; start < size; start += blockSize {
		raw := b.Raw[start:min(start+blockSize, size)]
		_, _ = rng.Read(raw[:len(raw)/2]) // never fails
		copy(raw[len(raw)/2:], fmt.Sprintf("the rest of block %d of blob %d", start/blockSize, seed))
		before := len(b.Stored)
		b.Stored = enc.EncodeAll(raw, b.Stored)
		builder.Append(blockfmt.IDOf(b.Stored[before:]), int64(len(b.Stored)-before), int64(len(raw)))
	}
	if b.Index, err = builder.Index(digest.FromBytes(b.Stored)); err != nil {
		panic(fmt.Sprintf("blob of %d bytes in blocks of %d: %v", size, blockSize, err))
	}
	return b
}

// Refs returns all blocks in order.
func (b *Blob) Refs() []blockfmt.Ref {
	refs := make([]blockfmt.Ref, b.Index.Len())
	for i := range refs {
		refs[i] = b.Index.Ref(i)
	}
	return refs
}

// Bytes returns the stored bytes of a block.
func (b *Blob) Bytes(ref blockfmt.Ref) []byte {
	return b.Stored[ref.Offset : ref.Offset+ref.Length : ref.Offset+ref.Length]
}

// Block makes the blob a Source of its own blocks: ErrNotFound for those of others.
func (b *Blob) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if ref.Blob != b.Index.Blob() || ref.Number < 0 || ref.Number >= b.Index.Len() || b.Index.Ref(ref.Number) != ref {
		return nil, fmt.Errorf("%v: %w", ref, blockfmt.ErrNotFound)
	}
	return b.Bytes(ref), nil
}
