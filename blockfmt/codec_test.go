package blockfmt_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

func compress(t testing.TB, raw []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, append(opts, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(raw, nil)
}

// stream compresses without the content size in the frame.
func stream(t testing.TB, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	enc, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for left := size; left > 0 && err == nil; left -= len(zeros) {
		_, err = enc.Write(zeros[:min(left, len(zeros))])
	}
	if err := errors.Join(err, enc.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecode(t *testing.T) {
	raw := bytes.Repeat([]byte("raw bytes "), 1000)
	frame := compress(t, raw)
	for name, test := range map[string]struct {
		stored []byte
		length int64
		codec  blockfmt.Codec
		want   error
	}{
		"good":              {frame, 10000, blockfmt.CodecZstd, nil},
		"without checksum":  {compress(t, raw, zstd.WithEncoderCRC(false)), 10000, blockfmt.CodecZstd, nil},
		"shorter than said": {frame, 10001, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"longer than said":  {frame, 9999, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"two frames":        {append(bytes.Clone(frame), frame...), 10000, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"cut":               {frame[:len(frame)-5], 10000, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"nothing":           {nil, 10000, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"nonsense":          {raw, 10000, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"negative":          {frame, -1, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"huge":              {frame, blockfmt.MaxBlockSize + 1, blockfmt.CodecZstd, blockfmt.ErrCorrupt},
		"raw":               {raw, 10000, blockfmt.CodecNone, nil},
		"raw, short":        {raw[1:], 10000, blockfmt.CodecNone, blockfmt.ErrCorrupt},
	} {
		for _, dst := range [][]byte{nil, make([]byte, 3, 100), make([]byte, 20000)} {
			got, err := blockfmt.Decode(blockfmt.Ref{RawLength: test.length, Codec: test.codec}, test.stored, dst)
			if !errors.Is(err, test.want) || (err == nil && !bytes.Equal(got, raw)) {
				t.Errorf("%s into %d bytes: %d bytes, %v; want %v", name, cap(dst), len(got), err, test.want)
			}
			if err == nil && cap(dst) >= len(raw) && &got[0] != &dst[:1][0] {
				t.Errorf("%s: a buffer of %d bytes is not used", name, cap(dst))
			}
		}
	}
}

// TestDecodeBomb: a frame that expands to gigabytes is stopped at the length that the index says, and costs no memory.
func TestDecodeBomb(t *testing.T) {
	for name, bomb := range map[string][]byte{
		"size not said": stream(t, 1<<30),
		"size said":     compress(t, make([]byte, 64<<20)),
		"large window":  compress(t, make([]byte, 64<<20), zstd.WithWindowSize(zstd.MaxWindowSize)),
		// header of a frame with a window of 2^41 bytes, then an RLE block
		"absurd window": {0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xF8, 0x03, 0x00, 0x10, 0x00},
		// header that says a content size of 2^62 bytes
		"absurd size": {0x28, 0xB5, 0x2F, 0xFD, 0xE0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x03, 0x00, 0x10, 0x00},
	} {
		for _, length := range []int64{1, blockfmt.BlockSize} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := blockfmt.Decode(blockfmt.Ref{RawLength: length, Codec: blockfmt.CodecZstd}, bomb, nil)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("%s: error %v, want ErrCorrupt", name, err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 2*blockfmt.MaxBlockSize {
				t.Errorf("%s: %d bytes allocated", name, n)
			}
		}
	}
}

// FuzzDecode: whatever comes, it is exactly the raw length or an error.
func FuzzDecode(f *testing.F) {
	raw := bytes.Repeat([]byte("raw bytes "), 100)
	f.Add(compress(f, raw), int64(1000))
	f.Add(stream(f, 5000), int64(5000))
	f.Add([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xF8, 0x03, 0x00, 0x10, 0x00}, int64(65536))
	f.Fuzz(func(t *testing.T, stored []byte, length int64) {
		got, err := blockfmt.Decode(blockfmt.Ref{RawLength: length, Codec: blockfmt.CodecZstd}, stored, nil)
		if err == nil && int64(len(got)) != length {
			t.Errorf("%d bytes, want %d", len(got), length)
		}
		if err != nil && !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("error %v", err)
		}
	})
}

func TestVerify(t *testing.T) {
	blob := blocktest.NewBlob(1, 100<<10, 64<<10)
	ref := blob.Index.Ref(1)
	if err := blockfmt.Verify(ref, blob.Bytes(ref)); err != nil {
		t.Error(err)
	}
	for _, f := range []blocktest.Fault{blocktest.WrongBytes, blocktest.TooShort, blocktest.TooLong, blocktest.Empty} {
		if err := blockfmt.Verify(ref, f.Apply(blob.Bytes(ref))); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%v: error %v", f, err)
		}
	}
}

func FuzzParseBlockID(f *testing.F) {
	f.Add(blockfmt.IDOf(nil).String())
	f.Add("ABCDEF")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := blockfmt.ParseBlockID(s)
		if err == nil && id.String() != s {
			t.Errorf("%q is read as %v", s, id)
		}
		if err != nil && !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("error %v", err)
		}
	})
}
