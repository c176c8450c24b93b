package agent

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

func testIndex(t *testing.T, name string, blocks int) *blockfmt.Index {
	t.Helper()
	var b blockfmt.IndexBuilder
	for i := range blocks {
		b.Append(blockfmt.IDOf([]byte{byte(i)}), 1000, blockfmt.BlockSize)
	}
	ix, err := b.Index(digest.FromString(name))
	if err != nil {
		t.Fatal(err)
	}
	return ix
}

func TestRecorderKeepsFirstTouchOrder(t *testing.T) {
	a, b := testIndex(t, "a", 4), testIndex(t, "b", 4)
	r := newRecorder(&image{indexes: []*blockfmt.Index{a, b}})
	r.touch(b.Blob(), 3*blockfmt.BlockSize, 4096)
	r.touch(a.Blob(), blockfmt.BlockSize-1, 2) // crosses into block 1
	r.touch(b.Blob(), 3*blockfmt.BlockSize, 8192)
	r.touch(digest.FromString("other"), 0, 4096)
	want := "1 3\n0 0\n0 1\n"
	if got := string(r.record().Encode()); got != want {
		t.Errorf("record\n%s, want\n%s", got, want)
	}
	if reads := r.snapshot(); len(reads) != 3 || reads[2] != (pageRun{1, 3*blockfmt.BlockSize + 4096, 3*blockfmt.BlockSize + 8192}) {
		t.Errorf("reads %v: the second read of a page must not be noted again", reads)
	}
}

func TestSizeText(t *testing.T) {
	for text, want := range map[string]Size{"512KiB": 512 << 10, "40GiB": 40 << 30, "7": 7, "0B": 0, "3 MiB": 3 << 20} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "-1", "GiB", "1.5GiB", "9999999999GiB", "12 parsecs"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: accepted as %d", text, s)
		}
	}
	for _, s := range []Size{0, 1, 4096, 512 << 10, 40 << 30} {
		text, _ := s.MarshalText()
		var back Size
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("%d: written as %q, read as %d, %v", s, text, back, err)
		}
	}
}
