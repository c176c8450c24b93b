package metadata

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// pythonTree has the shape of a Debian image with Python and SciPy: layers of 49,000 entries in all, over 1.4 GB.
func pythonTree(layers int) []*Tree {
	var list []*Tree
	for l := range layers {
		root := directory(make(map[string]*Inode))
		offset := int64(0)
		for d := range 4456 / layers {
			top := fmt.Sprintf("packages-%02d", d%50)
			if root.Entries[top] == nil {
				root.Entries[top] = directory(make(map[string]*Inode))
			}
			dir := directory(make(map[string]*Inode))
			root.Entries[top].Entries[fmt.Sprintf("python module %d-%d", l, d)] = dir
			for f := range 9 {
				size := int64(f*f*f*f)*9 + int64(d)
				dir.Entries[fmt.Sprintf("source_file_%d.cpython-313.pyc", f*7919)] = with(file(size), func(in *Inode) {
					if in.MtimeNsec = uint32(offset % 1e9); size > 0 {
						in.Extents = []Extent{{0, size, 0, offset}}
					}
				})
				offset += roundUp(size, blockSize)
			}
			dir.Entries["link"] = symlink("../a_source_file")
		}
		list = append(list, &Tree{Root: root, Devices: []Device{{Size: offset}}})
	}
	return list
}

// TestImageOfPythonIsSmall keeps the promise of DESIGN: about 7 MiB for 49,000 entries.
func TestImageOfPythonIsSmall(t *testing.T) {
	merged, err := Merge(pythonTree(4))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	_ = merged.Walk(func(string, *Inode) error { n++; return nil })
	if size := len(encode(t, merged)); n < 49000 || size > 7<<20 {
		t.Errorf("%d entries take %d bytes", n, size)
	} else {
		t.Logf("%d entries take %d bytes", n, size)
	}
}

func BenchmarkWriteTo(b *testing.B) {
	tree := pythonTree(1)[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tree.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	var image bytes.Buffer
	if _, err := pythonTree(1)[0].WriteTo(&image); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(bytes.NewReader(image.Bytes()), int64(image.Len())); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	layers := pythonTree(4)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(layers); err != nil {
			b.Fatal(err)
		}
	}
}
