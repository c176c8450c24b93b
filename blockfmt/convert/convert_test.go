package convert_test

import (
	"strings"
	"testing"

	"github.com/xylem-project/xylem/blockfmt/convert"
)

func TestConvertReadsBack(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 100000)
	ref := simple(t,
		archive(t, dir("./"), dir("./etc/"), file("./etc/a", "hello"), file("./etc/big", big), file("./etc/same", big), file("gone", "x")),
		archive(t, file("etc/b", "world"), file(".wh.gone", ""), symlink("etc/l", "a"), hardlink("etc/h", "etc/b")),
	)
	r := converted(t, ref, convert.Options{})
	v := viewOf(t, r)
	for path, want := range map[string]string{"etc/a": "hello", "etc/big": big, "etc/same": big, "etc/b": "world", "etc/h": "world"} {
		if got := string(v.read(path)); got != want {
			t.Errorf("%s has %d bytes, want %d", path, len(got), len(want))
		}
	}
	if v.tree.Lookup("gone") != nil {
		t.Error("gone is still there")
	}
	if v.inode("etc/b") != v.inode("etc/h") {
		t.Error("hard link became a file of its own")
	}
	if r.Stats.Converted != 2 || r.Stats.RawSize > 2<<20 {
		t.Errorf("stats: %v", r.Stats)
	}
	t.Log(r.Stats)
}
