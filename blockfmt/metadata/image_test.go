package metadata

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/blockfmt"
)

func TestReadReturnsWhatWasWritten(t *testing.T) {
	tree := torture()
	tree.Root.Entries["layer"] = directory(map[string]*Inode{
		"implicit": with(directory(nil), func(in *Inode) { in.Implicit = true }),
		"link":     {Mode: TypeFile, LinkTo: "some/where/below"},
		"opaque":   with(directory(nil), func(in *Inode) { in.Xattrs = map[string]string{xattrOpaque: "y"} }),
	})
	sameTree(t, read(t, encode(t, tree)), tree)
}

func TestSameTreeSameBytes(t *testing.T) {
	if !bytes.Equal(encode(t, torture()), encode(t, torture())) {
		t.Error("two images of equal trees differ")
	}
	image := encode(t, torture())
	if again := encode(t, read(t, image)); !bytes.Equal(image, again) {
		t.Error("reading and writing an image changes it")
	}
}

func TestUUIDDiffersWithContent(t *testing.T) {
	uuid := func(tree *Tree) string { return string(encode(t, tree)[superOffset+48:][:16]) }
	one, other := torture(), torture()
	other.Root.Entries["setuid"].Mtime++
	if uuid(one) == uuid(other) || uuid(one) != uuid(torture()) {
		t.Error("the UUID does not follow the content")
	}
}

func TestEmptyTree(t *testing.T) {
	w := newWorld(t, t.TempDir(), &Tree{Root: directory(nil)})
	checkMounted(t, w.mount(t, t.TempDir()), w.tree)
	w.fsck(t, "")
	sameTree(t, read(t, encode(t, w.tree)), w.tree)
}

func TestManyDevices(t *testing.T) {
	tree := &Tree{Root: directory(make(map[string]*Inode))}
	for i := range 200 {
		tree.Devices = append(tree.Devices, devices(2)...)
		tree.Root.Entries[strings.Repeat("x", i+1)] = file(5000, Extent{0, 5000, i, 0})
	}
	dir := t.TempDir()
	w := newWorld(t, dir, tree)
	checkMounted(t, w.mount(t, mustMkdir(t, filepath.Join(dir, "mnt"))), tree)
	sameTree(t, read(t, encode(t, tree)), tree)
}

// TestRandomTrees has every reader agree on random trees.
func TestRandomTrees(t *testing.T) {
	dir := t.TempDir()
	mnt := mustMkdir(t, filepath.Join(dir, "mnt"))
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, dir, drawTree(t, "tree", false))
		image, err := os.ReadFile(w.image)
		if err != nil {
			t.Fatal(err)
		}
		again := read(t, image)
		sameTree(t, again, w.tree)
		if !bytes.Equal(encode(t, again), image) {
			t.Errorf("reading and writing an image changes it")
		}
		w.fsck(t, "")
		checkGoErofs(t, w.goErofs(t), w.tree)
		checkMounted(t, w.mount(t, mnt), w.tree)
	})
}

func TestWriteRefuses(t *testing.T) {
	inDir := func(name string, in *Inode) *Tree {
		return &Tree{Devices: devices(4), Root: directory(map[string]*Inode{name: in})}
	}
	one := func(in *Inode) *Tree { return inDir("x", in) }
	withXattr := func(name, value string) *Tree {
		return one(with(file(0), func(in *Inode) { in.Xattrs = map[string]string{name: value} }))
	}
	twice := directory(nil)
	loop := directory(nil)
	loop.Entries = map[string]*Inode{"loop": loop}
	deep := directory(nil)
	for range maxDepth + 1 {
		deep = directory(map[string]*Inode{"d": deep})
	}
	for name, tree := range map[string]*Tree{
		"no root":              {},
		"root is a file":       {Root: file(0)},
		"unaligned device":     {Root: directory(nil), Devices: []Device{{Size: 100}}},
		"huge device":          {Root: directory(nil), Devices: []Device{{Size: 1 << 50}}},
		"bad digest":           {Root: directory(nil), Devices: []Device{{Digest: "sha256:x"}}},
		"other digest":         {Root: directory(nil), Devices: []Device{{Digest: "sha512:x"}}},
		"too many devices":     {Root: directory(nil), Devices: make([]Device, maxDevices+1)},
		"no type":              one(&Inode{Mode: 0o644}),
		"wide mode":            one(&Inode{Mode: 1<<16 | TypeFile}),
		"nanoseconds":          one(&Inode{Mode: TypeFile, MtimeNsec: 1e9}),
		"nil inode":            one(nil),
		"negative size":        one(file(-1)),
		"name with slash":      inDir("a/b", file(0)),
		"empty name":           inDir("", file(0)),
		"dot":                  inDir(".", file(0)),
		"dot dot":              inDir("..", file(0)),
		"name with NUL":        inDir("a\x00", file(0)),
		"long name":            inDir(strings.Repeat("n", 256), file(0)),
		"empty target":         one(symlink("")),
		"long target":          one(symlink(strings.Repeat("x", 4096))),
		"target with NUL":      one(symlink("a\x00b")),
		"major":                one(&Inode{Mode: TypeChar, Major: 1 << 12}),
		"minor":                one(&Inode{Mode: TypeBlock, Minor: 1 << 20}),
		"implicit file":        one(&Inode{Mode: TypeFile, Implicit: true}),
		"entries of a file":    one(&Inode{Mode: TypeFile, Entries: map[string]*Inode{"x": file(0)}}),
		"directory twice":      {Root: directory(map[string]*Inode{"a": twice, "b": twice})},
		"directory loop":       {Root: loop},
		"deep":                 {Root: deep},
		"unknown xattr":        withXattr("system.nfs4_acl", "x"),
		"xattr without prefix": withXattr("x", "x"),
		"xattr prefix alone":   withXattr("user.", "x"),
		"own xattr":            withXattr(xattrImplicit, "y"),
		"xattr name":           withXattr("user."+strings.Repeat("n", 256), ""),
		"xattr value":          withXattr("user.x", strings.Repeat("v", 1<<16)),
		"xattr like an ACL":    withXattr("system.posix_acl_access.x", "x"),
		"extent beyond file":   one(file(100, Extent{0, 101, 0, 0})),
		"extent far beyond":    one(file(100, Extent{4096, 1, 0, 0})),
		"extent negative":      one(file(100, Extent{-4096, 4100, 0, 0})),
		"extent empty":         one(file(100, Extent{0, 0, 0, 0})),
		"extent unaligned":     one(file(9000, Extent{100, 8900, 0, 0})),
		"extent device offset": one(file(9000, Extent{0, 9000, 0, 1})),
		"extent ends in page":  one(file(9000, Extent{0, 5000, 0, 0})),
		"extents overlap":      one(file(9000, Extent{0, 8192, 0, 0}, Extent{4096, 4904, 0, 0})),
		"extents descend":      one(file(8192, Extent{4096, 4096, 0, 0}, Extent{0, 4096, 0, 0})),
		"extent device":        one(file(100, Extent{0, 100, 1, 0})),
		"extent device -1":     one(file(100, Extent{0, 100, -1, 0})),
		"extent beyond device": one(file(9000, Extent{0, 9000, 0, 2 * blockSize})),
		"extent wraps":         one(file(9000, Extent{0, 9000, 0, 1<<63 - blockSize})),
		"endless chunk map":    one(file(1<<62, Extent{4096, 4096, 0, 0})),
	} {
		_, err := tree.WriteTo(new(bytes.Buffer))
		if !errors.Is(err, blockfmt.ErrCorrupt) && !errors.Is(err, blockfmt.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failing struct{ left int }

func (f *failing) Write(b []byte) (int, error) {
	n := min(f.left, len(b))
	if f.left -= n; n < len(b) {
		return n, os.ErrClosed
	}
	return n, nil
}

func TestWriteReportsErrors(t *testing.T) {
	tree := torture()
	size := len(encode(t, tree))
	for _, n := range []int{0, 1, 4096, size / 2, size - 1} {
		if got, err := tree.WriteTo(&failing{n}); !errors.Is(err, os.ErrClosed) || got != int64(n) {
			t.Errorf("a writer that fails after %d bytes: %d, %v", n, got, err)
		}
	}
}
