package convert

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// FuzzLayerTree: any bytes are either refused as corrupt or unsupported or give a tree that is bounded and can be written.
func FuzzLayerTree(f *testing.F) {
	for _, names := range [][]string{{"a", "b/c", "./d"}, {".wh.a", "b/.wh..wh..opq"}, {"../x", "/y", "z/"}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i, name := range names {
			for _, kind := range []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo} {
				h := &tar.Header{Name: strings.TrimSuffix(name, "/"), Linkname: names[(i+1)%len(names)], Typeflag: kind, Format: tar.FormatPAX}
				if kind == tar.TypeReg {
					h.Size = 5
					h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"}
				}
				if err := w.WriteHeader(h); err != nil {
					f.Fatal(err)
				}
				if _, err := io.WriteString(w, "hello"[:h.Size]); err != nil {
					f.Fatal(err)
				}
			}
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		read := int64(0)
		tree := newLayerTree(limits{1000, 1 << 20}, func(_ string, r io.Reader, size int64) ([]metadata.Extent, error) {
			if read += size; size > 1<<20 || read > 1<<22 {
				return nil, blockfmt.ErrUnsupported
			}
			_, err := io.CopyN(io.Discard, r, size)
			return nil, asCorrupt(unexpectedEOF(err))
		})
		if err := tree.read(bytes.NewReader(data)); err != nil {
			if !errors.Is(err, blockfmt.ErrCorrupt) && !errors.Is(err, blockfmt.ErrUnsupported) {
				t.Fatalf("error without a kind: %v", err)
			}
			return
		}
		out := &metadata.Tree{Root: tree.root}
		err := out.Walk(func(path string, in *metadata.Inode) error {
			if len(path) > 2*maxPath || strings.Contains("/"+path+"/", "/../") {
				t.Fatalf("path %q", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.WriteTo(io.Discard); err != nil {
			t.Fatalf("cannot be written: %v", err)
		}
	})
}

// The set of intervals against a slice of flags.
func FuzzIntervals(f *testing.F) {
	f.Add([]byte{10, 5, 0, 0, 3, 1, 8, 60, 12, 4})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const pages = 256
		var set intervals
		taken := make([]bool, pages)
		for ; len(ops) >= 2; ops = ops[2:] {
			start, end := int64(ops[0]), min(int64(ops[0])+int64(ops[1]%32)+1, pages)
			for _, i := range set.add(interval{start << 12, end << 12}, interval{0, pages << 12}) {
				for p := i.start >> 12; p < i.end>>12; p++ {
					if taken[p] {
						t.Fatalf("page %d given twice", p)
					}
					taken[p] = true
				}
			}
			for p := start; p < end; p++ {
				if !taken[p] {
					t.Fatalf("page %d not given", p)
				}
			}
		}
		for i := 1; i < len(set); i++ {
			if set[i-1].end >= set[i].start {
				t.Fatalf("%v is not disjoint and ascending", set)
			}
		}
	})
}
