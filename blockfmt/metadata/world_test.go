package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// tester is what *testing.T and *rapid.T have in common here.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// deviceBytes fills b with the test data of a device from off on. Every 8 bytes say where they are from.
func deviceBytes(b []byte, device int, off int64) {
	for i := range b {
		at := off + int64(i)
		word := uint64(at>>3+1)*0x9e3779b97f4a7c15 ^ uint64(device+1)<<56
		b[i] = byte(word >> (8 * (at & 7)))
	}
}

// fileBytes is what a file must read as.
func fileBytes(in *Inode, off, n int64) []byte {
	b := make([]byte, n)
	for _, e := range in.Extents {
		start, end := max(e.FileOffset, off), min(e.FileOffset+e.Length, off+n)
		if start < end {
			deviceBytes(b[start-off:end-off], e.Device, e.DeviceOffset+start-e.FileOffset)
		}
	}
	return b
}

// samples returns the ranges of a file that are compared: all of a small file, the surroundings of the extents of others.
func samples(in *Inode) [][2]int64 {
	if in.Size <= 16<<20 {
		return [][2]int64{{0, in.Size}}
	}
	list := [][2]int64{{0, blockSize}, {in.Size - 1, 1}}
	for _, e := range in.Extents {
		start := max(e.FileOffset-100, 0)
		list = append(list, [2]int64{start, min(e.FileOffset+e.Length+100, in.Size) - start})
	}
	return list
}

// world is a tree with its image and devices as files.
type world struct {
	tree    *Tree
	image   string
	devices []string
}

func newWorld(t tester, dir string, tree *Tree) *world {
	t.Helper()
	return newLayerWorld(t, dir, tree, 0)
}

// newLayerWorld fills the devices as if they came behind that many others.
func newLayerWorld(t tester, dir string, tree *Tree, others int) *world {
	t.Helper()
	w := &world{tree: tree, image: filepath.Join(dir, "image.erofs")}
	writeFile(t, w.image, encode(t, tree))
	for i, d := range tree.Devices {
		b := make([]byte, d.Size)
		deviceBytes(b, others+i, 0)
		w.devices = append(w.devices, filepath.Join(dir, fmt.Sprintf("device%d", i)))
		writeFile(t, w.devices[i], b)
	}
	return w
}

// writeFile also syncs, without which the kernel may mount old contents.
func writeFile(t tester, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func encode(t tester, tree *Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := tree.WriteTo(&b)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("WriteTo says %d bytes, wrote %d", n, b.Len())
	}
	return b.Bytes()
}

func read(t tester, image []byte) *Tree {
	t.Helper()
	tree, err := Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return tree
}

// dump returns the whole tree as text, hard links as references, so that trees can be compared and differences read.
func dump(tree *Tree) []string {
	var list []string
	first := make(map[*Inode]string)
	_ = tree.Walk(func(path string, in *Inode) error {
		if other, ok := first[in]; ok {
			list = append(list, fmt.Sprintf("%q = %q", path, other))
			return nil
		}
		first[in] = path
		list = append(list, fmt.Sprintf("%q %s", path, describe(in)))
		return nil
	})
	return append(list, fmt.Sprint(tree.Devices))
}

func describe(in *Inode) string {
	if in.LinkTo != "" {
		return fmt.Sprintf("link to %q", in.LinkTo)
	}
	var xattrs []string
	for _, name := range slices.Sorted(maps.Keys(in.Xattrs)) {
		xattrs = append(xattrs, fmt.Sprintf("%q=%q", name, in.Xattrs[name]))
	}
	size := in.Size
	if in.Mode&TypeMask != TypeFile {
		size = 0
	}
	return fmt.Sprintf("%o %d:%d %d.%09d dev %d:%d size %d -> %q %v %v implicit %v", in.Mode, in.UID, in.GID, in.Mtime, in.MtimeNsec,
		in.Major, in.Minor, size, in.Target, xattrs, joinExtents(in.Extents), in.Implicit)
}

func sameTree(t tester, got, want *Tree) {
	t.Helper()
	sameLines(t, dump(got), dump(want))
}

func sameLines(t tester, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("line %d\n got %.1000s\nwant %.1000s", i, g, w)
			return
		}
	}
}

// links counts the names of every inode, as st_nlink does.
func links(tree *Tree) map[*Inode]uint64 {
	n := make(map[*Inode]uint64)
	_ = tree.Walk(func(_ string, in *Inode) error {
		n[in]++
		if in.IsDir() {
			n[in] = 2
			for _, entry := range in.Entries {
				if entry.IsDir() {
					n[in]++
				}
			}
		}
		return nil
	})
	return n
}

// capability is a valid security.capability: version 2, cap_net_raw.
func capability() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<13)
	return string(append(b, make([]byte, 12)...))
}

// acl is a valid POSIX ACL with a named user: user::rw-, user:id:r--, group::r--, mask::r--, other::r--.
func acl(id uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 4, id}, {4, 4, ^uint32(0)}, {0x10, 4, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

func contentEquals(t tester, path string, in *Inode, r io.ReaderAt) {
	t.Helper()
	for _, s := range samples(in) {
		got := make([]byte, s[1])
		if n, err := r.ReadAt(got, s[0]); int64(n) != s[1] {
			t.Errorf("%q: read %d bytes at %d: got %d, %v", path, s[1], s[0], n, err)
			return
		}
		if !bytes.Equal(got, fileBytes(in, s[0], s[1])) {
			t.Errorf("%q: wrong bytes in the %d at %d", path, s[1], s[0])
			return
		}
	}
}

func mustMkdir(t testing.TB, path string) string {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
