package blockfmt

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// decoder decodes single frames; DecodeAll is safe for concurrent use. Frames that claim more memory than
// MaxBlockSize are refused before anything is allocated for them.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxBlockSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // constant options
	}
	return d
})

// Decode returns the raw bytes of a block from its verified stored bytes, in dst's array if its capacity is at least
// ref.RawLength. It returns ErrCorrupt unless they are exactly ref.RawLength bytes; a frame that expands to more is
// stopped there.
func Decode(ref Ref, stored, dst []byte) ([]byte, error) {
	if ref.RawLength < 0 || ref.RawLength > MaxBlockSize {
		return nil, fmt.Errorf("%v: raw length %d: %w", ref, ref.RawLength, ErrCorrupt)
	}
	if ref.Codec == CodecNone {
		if int64(len(stored)) != ref.RawLength {
			return nil, fmt.Errorf("%v: %d raw bytes, want %d: %w", ref, len(stored), ref.RawLength, ErrCorrupt)
		}
		return append(dst[:0], stored...), nil
	}
	if int64(cap(dst)) < ref.RawLength {
		dst = make([]byte, 0, ref.RawLength)
	}
	raw, err := decoder().DecodeAll(stored, dst[:0:ref.RawLength])
	if err != nil {
		return nil, fmt.Errorf("%v: zstd: %w: %w", ref, err, ErrCorrupt)
	}
	if int64(len(raw)) != ref.RawLength {
		return nil, fmt.Errorf("%v: expands to %d bytes, want %d: %w", ref, len(raw), ref.RawLength, ErrCorrupt)
	}
	return raw, nil
}
