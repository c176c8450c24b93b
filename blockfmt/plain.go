package blockfmt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// PlainIndex returns the index of a blob that is not part of a block image, such as a layer as its registry has it: size bytes in
// blocks of BlockSize, as they are. What is in them is known only when the whole blob is here, so their IDs are names: they do not verify.
func PlainIndex(blob digest.Digest, size int64) (*Index, error) {
	b := IndexBuilder{plain: true}
	for off := int64(0); off < size; off += BlockSize {
		n := min(BlockSize, size-off)
		b.Append(plainID(blob, len(b.entries)), n, n)
	}
	return b.Index(blob)
}

func plainID(blob digest.Digest, number int) BlockID {
	name := binary.BigEndian.AppendUint64([]byte("plain block "+blob+" "), uint64(number))
	return sha256.Sum256(name)
}

// IsPlain says whether a block is one of PlainIndex, which cannot be verified.
func (r Ref) IsPlain() bool { return r.Codec == CodecNone && r.ID == plainID(r.Blob, r.Number) }

// VerifyLength is Verify, but for blocks of PlainIndex it only compares lengths. Whoever uses it for them checks the whole blob.
func VerifyLength(ref Ref, stored []byte) error {
	if !ref.IsPlain() {
		return Verify(ref, stored)
	}
	if int64(len(stored)) != ref.Length {
		return fmt.Errorf("%v: %d bytes of %d: %w", ref, len(stored), ref.Length, ErrCorrupt)
	}
	return nil
}
