package convert_test

import (
	"bytes"
	"testing"

	"github.com/xylem-project/xylem/blockfmt/convert"
)

// What a start may read lies together at the start of the blob, however it lies in the archive.
func TestLikelyFilesAreLaidOutFirst(t *testing.T) {
	const size = 100_000
	names := []string{ // every third one is what a running program reads
		"usr/share/doc/a/README", "usr/lib/python3/a.py", "usr/bin/a",
		"usr/include/a.h", "usr/lib/python3/b.py", "usr/lib/liba.so.1",
		"usr/lib/python3/tests/__pycache__/a.pyc", "usr/lib/python3/c.py", "usr/lib/python3/__pycache__/a.pyc",
		"var/lib/dpkg/info/a.list", "usr/lib/python3/d.py", "etc/documents",
		"usr/lib/liba.a", "usr/lib/python3/e.py", "usr/share/a/data.json",
		"usr/lib/python3/__pycache__/a.opt-2.pyc", "usr/lib/python3/f.py", "opt/doc",
	}
	var entries []entry
	for i, name := range names {
		entries = append(entries, file(name, some(uint64(i), size)))
	}
	entries = append(entries, file("opt/copy-of-the-header", some(3, size)), hardlink("opt/link", "usr/bin/a"))
	r := converted(t, simple(t, archive(t, entries...)), convert.Options{})
	v, layer := viewOf(t, r), r.Artifact.Layers[0]
	device := deviceOf(t, r, layer)
	const padded = size + 4096 - size%4096
	for i := range names {
		at := ((2-i%3)*len(names)/3 + i/3) * padded // running programs' files, then sources; documentation last
		if !bytes.Equal(device[at:at+size], []byte(some(uint64(i), size))) {
			t.Errorf("%s is not at %d", names[i], at)
		}
		if string(v.read(names[i])) != some(uint64(i), size) {
			t.Errorf("%s differs", names[i])
		}
	}
	if string(v.read("opt/copy-of-the-header")) != some(3, size) || string(v.read("opt/link")) != some(2, size) {
		t.Error("a copy in another section, or a link, differs")
	}
	if len(device) != len(names)*padded {
		t.Errorf("blob of %d bytes, want each content once", len(device))
	}
	if want := (len(names)/3*padded + 512<<10 - 1) / (512 << 10); layer.RunningBlocks != want {
		t.Errorf("%d running blocks, want %d", layer.RunningBlocks, want)
	}
}

// A layer without anything for running programs is a blob like any other.
func TestLayerOfDocumentation(t *testing.T) {
	r := converted(t, simple(t, archive(t, file("usr/share/doc/x", some(1, 5000)))), convert.Options{})
	if n := r.Artifact.Layers[0].RunningBlocks; n != 0 {
		t.Errorf("%d running blocks", n)
	}
	if string(viewOf(t, r).read("usr/share/doc/x")) != some(1, 5000) {
		t.Error("other bytes")
	}
}
