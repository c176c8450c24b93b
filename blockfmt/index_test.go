package blockfmt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

const someBlob = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

// indexBytes makes a chunk index by hand, as the specification's section 3.4 says.
type indexBytes struct {
	version, codec byte
	flags          uint16
	rawSize        uint64
	hash, hashSize byte
	reserved       byte
	entries        [][2]uint64 // offset, raw offset
	count          int         // of entries in the header; 0: as many as there are
}

func (ib indexBytes) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 32)
	copy(b, []byte{0xCD, 0xE4, 0xEC, 0x67})
	b[4], b[5] = ib.version, ib.codec
	le.PutUint16(b[6:], ib.flags)
	le.PutUint64(b[8:], ib.rawSize)
	if ib.count == 0 {
		ib.count = len(ib.entries)
	}
	le.PutUint32(b[16:], uint32(ib.count))
	b[20], b[21], b[31] = ib.hash, ib.hashSize, ib.reserved
	for i, e := range ib.entries {
		b = le.AppendUint64(b, e[0])
		b = le.AppendUint64(b, e[1])
		b = append(b, bytes.Repeat([]byte{byte(i)}, 32)...)
	}
	return b
}

func TestIndexRoundTrip(t *testing.T) {
	blob := blocktest.NewBlob(1, 300<<10+5, 64<<10)
	encoded := blob.Index.Encode()
	ix, err := blockfmt.DecodeIndex(encoded, blob.Index.Blob(), int64(len(blob.Stored)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ix.Encode(), encoded) || ix.Len() != 5 || ix.RawSize() != 300<<10+5 || ix.StoredSize() != int64(len(blob.Stored)) {
		t.Errorf("%d blocks of %d bytes", ix.Len(), ix.RawSize())
	}
	for i, ref := range blob.Refs() {
		if ix.Ref(i) != ref {
			t.Errorf("block %d: %+v, want %+v", i, ix.Ref(i), ref)
		}
	}
}

// TestIndexLayout pins the binary form, which other implementations read.
func TestIndexLayout(t *testing.T) {
	want := indexBytes{version: 1, codec: 1, rawSize: 1000, hash: 1, hashSize: 32, entries: [][2]uint64{{0, 0}, {70, 600}}}.encode()
	ix, err := blockfmt.DecodeIndex(want, someBlob, 100)
	if err != nil {
		t.Fatal(err)
	}
	second := blockfmt.Ref{ID: blockfmt.BlockID(bytes.Repeat([]byte{1}, 32)), Blob: someBlob, Number: 1, Offset: 70, Length: 30, RawOffset: 600, RawLength: 400, Codec: blockfmt.CodecZstd}
	if ix.Ref(1) != second {
		t.Errorf("second block %+v, want %+v", ix.Ref(1), second)
	}
	if got := ix.Encode(); !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, want)
	}
}

func TestIndexOfRawBlocks(t *testing.T) {
	b := indexBytes{version: 1, rawSize: 1000, hash: 1, hashSize: 32, entries: [][2]uint64{{0, 0}, {600, 600}}}.encode()
	ix, err := blockfmt.DecodeIndex(b, someBlob, 1000)
	if err != nil || ix.Ref(0).Length != 600 || ix.Ref(1).Length != 400 || ix.Ref(1).Codec != blockfmt.CodecNone {
		t.Errorf("%v", err)
	}
}

func TestIndexBad(t *testing.T) {
	good := indexBytes{version: 1, codec: 1, rawSize: 1000, hash: 1, hashSize: 32, entries: [][2]uint64{{0, 0}, {70, 600}}}
	const end = 100
	for name, test := range map[string]struct {
		change func(*indexBytes)
		want   error
	}{
		"good":                       {func(*indexBytes) {}, nil},
		"version":                    {func(b *indexBytes) { b.version = 2 }, blockfmt.ErrUnsupported},
		"compression":                {func(b *indexBytes) { b.codec = 7 }, blockfmt.ErrUnsupported},
		"flags":                      {func(b *indexBytes) { b.flags = 0x100 }, blockfmt.ErrUnsupported},
		"no hash":                    {func(b *indexBytes) { b.hash, b.hashSize = 0, 0 }, blockfmt.ErrUnsupported},
		"other hash size":            {func(b *indexBytes) { b.hashSize = 64 }, blockfmt.ErrUnsupported},
		"reserved":                   {func(b *indexBytes) { b.reserved = 1 }, blockfmt.ErrCorrupt},
		"count too high":             {func(b *indexBytes) { b.count = 3 }, blockfmt.ErrCorrupt},
		"count absurd":               {func(b *indexBytes) { b.count = math.MaxUint32 }, blockfmt.ErrCorrupt},
		"count too low":              {func(b *indexBytes) { b.count = 1 }, blockfmt.ErrCorrupt},
		"raw size negative":          {func(b *indexBytes) { b.rawSize = math.MaxUint64 }, blockfmt.ErrCorrupt},
		"raw size huge":              {func(b *indexBytes) { b.rawSize = math.MaxInt64 }, blockfmt.ErrCorrupt},
		"raw size small":             {func(b *indexBytes) { b.rawSize = 600 }, blockfmt.ErrCorrupt},
		"no entries":                 {func(b *indexBytes) { b.entries = nil }, blockfmt.ErrCorrupt},
		"nothing at all":             {func(b *indexBytes) { b.entries, b.rawSize = nil, 0 }, nil},
		"does not start at 0":        {func(b *indexBytes) { b.entries[0][1] = 1 }, blockfmt.ErrCorrupt},
		"overlapping":                {func(b *indexBytes) { b.entries[1] = [2]uint64{70, 0} }, blockfmt.ErrCorrupt},
		"descending":                 {func(b *indexBytes) { b.entries[0], b.entries[1] = [2]uint64{70, 0}, [2]uint64{0, 600} }, blockfmt.ErrCorrupt},
		"descending raw":             {func(b *indexBytes) { b.entries = append(b.entries, [2]uint64{80, 500}) }, blockfmt.ErrCorrupt},
		"empty block":                {func(b *indexBytes) { b.entries[1][0] = 0 }, blockfmt.ErrCorrupt},
		"behind the end":             {func(b *indexBytes) { b.entries[1][0] = 101 }, blockfmt.ErrCorrupt},
		"at the end":                 {func(b *indexBytes) { b.entries[1][0] = 100 }, blockfmt.ErrCorrupt},
		"negative offset":            {func(b *indexBytes) { b.entries[0][0] = math.MaxUint64 }, blockfmt.ErrCorrupt},
		"negative raw offset":        {func(b *indexBytes) { b.entries[1][1] = math.MaxUint64 - 5 }, blockfmt.ErrCorrupt},
		"block too large":            {func(b *indexBytes) { b.rawSize = 600 + blockfmt.MaxBlockSize + 1 }, blockfmt.ErrCorrupt},
		"raw block too large":        {func(b *indexBytes) { b.codec, b.rawSize = 0, 600+blockfmt.MaxBlockSize+1 }, blockfmt.ErrCorrupt},
		"raw blocks behind the end":  {func(b *indexBytes) { b.codec = 0 }, blockfmt.ErrCorrupt},
		"raw blocks, overlap stored": {func(b *indexBytes) { b.codec, b.rawSize, b.entries = 0, 90, [][2]uint64{{0, 0}, {10, 50}} }, blockfmt.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			b := good
			b.entries = append([][2]uint64{}, good.entries...)
			test.change(&b)
			if _, err := blockfmt.DecodeIndex(b.encode(), someBlob, end); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
	for n := range good.encode() {
		if _, err := blockfmt.DecodeIndex(good.encode()[:n], someBlob, end); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestFind(t *testing.T) {
	blob := blocktest.NewBlob(2, 250, 100)
	for _, test := range []struct{ off, n, first, end int64 }{
		{0, 1, 0, 1}, {0, 100, 0, 1}, {0, 101, 0, 2}, {99, 1, 0, 1}, {99, 2, 0, 2}, {100, 1, 1, 2}, {50, 200, 0, 3}, {249, 1, 2, 3},
		{249, 1000, 2, 3}, {0, math.MaxInt64, 0, 3}, {200, math.MaxInt64, 2, 3}, {250, 1, 0, 0}, {-1, 5, 0, 0}, {0, 0, 0, 0}, {0, -1, 0, 0},
		{math.MaxInt64, math.MaxInt64, 0, 0},
	} {
		if first, end := blob.Index.Find(test.off, test.n); int64(first) != test.first || int64(end) != test.end {
			t.Errorf("%d bytes at %d: blocks %d to %d, want %d to %d", test.n, test.off, first, end, test.first, test.end)
		}
	}
}

func TestIndexBuilderBounds(t *testing.T) {
	for name, lengths := range map[string][2]int64{"empty": {0, 5}, "raw empty": {5, 0}, "negative": {-1, 5}, "huge": {blockfmt.MaxBlockSize + 1, 5}, "raw huge": {5, blockfmt.MaxBlockSize + 1}} {
		var b blockfmt.IndexBuilder
		b.Append(blockfmt.BlockID{}, 10, 10)
		b.Append(blockfmt.BlockID{}, lengths[0], lengths[1])
		if _, err := b.Index(someBlob); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%s block: %v", name, err)
		}
	}
}

// FuzzDecodeIndex: whatever is decoded has the properties that all readers rely on, and encodes to the same bytes.
func FuzzDecodeIndex(f *testing.F) {
	f.Add(indexBytes{version: 1, codec: 1, rawSize: 1000, hash: 1, hashSize: 32, entries: [][2]uint64{{0, 0}, {70, 600}}}.encode(), int64(100))
	f.Add(indexBytes{version: 1, rawSize: 1000, hash: 1, hashSize: 32, entries: [][2]uint64{{0, 0}, {600, 600}}}.encode(), int64(1000))
	f.Add(indexBytes{version: 1, codec: 1, hash: 1, hashSize: 32}.encode(), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, end int64) {
		ix, err := blockfmt.DecodeIndex(data, someBlob, end)
		if err != nil {
			if !errors.Is(err, blockfmt.ErrCorrupt) && !errors.Is(err, blockfmt.ErrUnsupported) {
				t.Errorf("error %v", err)
			}
			return
		}
		var raw, stored int64
		for i := range ix.Len() {
			ref := ix.Ref(i)
			if ref.RawOffset != raw || ref.RawLength <= 0 || ref.RawLength > blockfmt.MaxBlockSize {
				t.Fatalf("block %d: raw bytes %d at %d, previous end at %d", i, ref.RawLength, ref.RawOffset, raw)
			}
			if ref.Offset < stored || ref.Length <= 0 || ref.Length > blockfmt.MaxBlockSize || ref.Offset+ref.Length > end {
				t.Fatalf("block %d: %d bytes at %d, previous end at %d, end %d", i, ref.Length, ref.Offset, stored, end)
			}
			raw, stored = raw+ref.RawLength, ref.Offset+ref.Length
			if first, last := ix.Find(ref.RawOffset, ref.RawLength); first != i || last != i+1 {
				t.Fatalf("block %d found as %d to %d", i, first, last)
			}
		}
		if raw != ix.RawSize() || !bytes.Equal(ix.Encode(), data) {
			t.Errorf("%d raw bytes of %d, or encoded differently", raw, ix.RawSize())
		}
	})
}
