package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
)

// small is a tree with one of everything, for changing bytes of its image.
func small() *Tree {
	shared := file(9000, Extent{0, 8192, 0, 0}, Extent{8192, 808, 1, 4096})
	return &Tree{Devices: devices(4, 4), Root: directory(map[string]*Inode{
		"dir":      directory(map[string]*Inode{"sub": directory(nil), "again": shared}),
		"file":     shared,
		"symlink":  symlink("target"),
		"long":     with(symlink(strings.Repeat("t", 4095)), func(in *Inode) { in.UID = 1 }),
		"char":     {Mode: TypeChar | 0o600, Major: 1, Minor: 300},
		"fifo":     {Mode: TypeFifo},
		"xattrs":   with(file(0), func(in *Inode) { in.Xattrs = map[string]string{"user.a": "b", "security.capability": capability()} }),
		"implicit": with(directory(nil), func(in *Inode) { in.Implicit = true }),
		"link":     {Mode: TypeFile, LinkTo: "a/b"},
	})}
}

// reseal makes the superblock's checksum right again.
func reseal(image []byte) []byte {
	if len(image) >= blockSize {
		binary.LittleEndian.PutUint32(image[superOffset+4:], superChecksum(image[superOffset:blockSize]))
	}
	return image
}

// checkHostile reads an image of unknown origin. If that succeeds, the tree must be one that can be written and read.
func checkHostile(t *testing.T, image []byte) {
	t.Helper()
	tree, err := Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		if !errors.Is(err, blockfmt.ErrCorrupt) && !errors.Is(err, blockfmt.ErrUnsupported) {
			t.Fatalf("error of no kind: %v", err)
		}
		return
	}
	sameTree(t, read(t, encode(t, tree)), tree)
	NewLocator(tree).Locate(0, 0, 1<<40)
	if _, err := Merge([]*Tree{tree, tree}); err != nil && !errors.Is(err, blockfmt.ErrCorrupt) {
		t.Fatalf("merge: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(encode(f, small()))
	f.Add(encode(f, &Tree{Root: manyFiles(300)}))
	f.Add(encode(f, &Tree{Root: directory(nil)}))
	f.Add(encode(f, &Tree{Root: tortureXattrs(), Devices: devices(64)})[:blockSize])
	f.Add(encode(f, &Tree{Root: tortureNames(), Devices: devices(64)}))
	f.Add(encode(f, &Tree{Root: tortureSpecial()}))
	f.Fuzz(func(t *testing.T, image []byte) { checkHostile(t, reseal(bytes.Clone(image))) })
}

// TestEveryByteMayBeWrong sets every byte of an image that is not one of many equal ones to a few other values.
func TestEveryByteMayBeWrong(t *testing.T) {
	image := encode(t, small())
	for i := superOffset; i < len(image); i++ {
		old := image[i]
		if old == image[i-1] && i%13 != 0 {
			continue
		}
		for _, b := range []byte{0, 0xff, old + 1, old ^ 0x20} {
			image[i] = b
			checkHostile(t, reseal(image))
		}
		image[i] = old
	}
}

func TestReadRefuses(t *testing.T) {
	original := encode(t, small())
	l, err := newLayout(small())
	if err != nil {
		t.Fatal(err)
	}
	at := make(map[string]int64) // offsets of inodes by name
	for _, n := range l.nodes {
		for i, name := range n.names {
			if name != "." && name != ".." {
				at[name] = l.nodes[n.entries[i]].offset
			}
		}
	}
	root := l.nodes[0].offset
	le := binary.LittleEndian
	put16 := func(offset int64, v uint16) func([]byte) { return func(b []byte) { le.PutUint16(b[offset:], v) } }
	put32 := func(offset int64, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[offset:], v) } }
	put64 := func(offset int64, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[offset:], v) } }
	nidOf := func(name string) func([]byte, string) { // points the entry called name to another inode
		return func(b []byte, to string) {
			start := root + inodeSize
			for d := start; d < start+int64(le.Uint16(b[start+8:])); d += direntSize {
				s := start + int64(le.Uint16(b[d+8:]))
				if bytes.HasPrefix(b[s:], []byte(name)) {
					le.PutUint64(b[d:], uint64(at[to]/slotSize))
				}
			}
		}
	}
	for name, change := range map[string]func([]byte){
		"magic":                  put32(superOffset, 1),
		"feature":                put32(superOffset+80, 0x2f),
		"compat feature":         put32(superOffset+8, 7),
		"block size":             func(b []byte) { b[superOffset+12] = 16 },
		"inode count":            put64(superOffset+16, 3),
		"block count":            put32(superOffset+36, 1),
		"devices beyond table":   put16(superOffset+86, 5000),
		"one device too few":     put16(superOffset+86, 1),
		"device tag":             func(b []byte) { b[deviceTable] = 'x' },
		"device reserved":        func(b []byte) { b[deviceTable+100] = 1 },
		"device size":            put32(deviceTable+64, 0xffffffff),
		"root nid":               put16(superOffset+14, 0xffff),
		"root is a file":         put16(superOffset+14, uint16(at["file"]/slotSize)),
		"root is a subdirectory": put16(superOffset+14, uint16(at["dir"]/slotSize)),
		"compact inode":          put16(at["file"], layoutChunk<<1),
		"compressed":             put16(at["file"], 1|3<<1),
		"no such layout":         put16(at["file"], 1|7<<1),
		"type":                   put16(at["file"]+4, TypeFifo),
		"no type":                put16(at["file"]+4, 0o644),
		"size":                   put64(at["file"]+8, 1<<62),
		"negative size":          put64(at["file"]+8, 1<<63),
		"size of a fifo":         put64(at["fifo"]+8, 1),
		"size of a symlink":      put64(at["symlink"]+8, 5000),
		"empty symlink":          put64(at["symlink"]+8, 0),
		"chunk format":           put32(at["file"]+16, 0x40|chunkIndexes),
		"chunk block map":        put32(at["file"]+16, 0),
		"chunk device 0":         put16(at["file"]+inodeSize+2, 0),
		"chunk device":           put16(at["file"]+inodeSize+2, 3),
		"chunk address":          put32(at["file"]+inodeSize+4, 3),
		"chunk flags":            put16(at["file"]+inodeSize, 1),
		"link count":             put32(at["file"]+44, 1),
		"nanoseconds":            put32(at["file"]+40, 1e9),
		"directory link count":   put32(root+44, 2),
		"xattrs beyond image":    put16(at["xattrs"]+2, 0xffff),
		"xattr header only":      put16(at["symlink"]+2, 0xf000),
		"shared xattrs":          func(b []byte) { b[at["xattrs"]+inodeSize+4] = 1 },
		"xattr prefix":           func(b []byte) { b[at["xattrs"]+inodeSize+xattrHeaderSize+1] = 9 },
		"xattr long prefix":      func(b []byte) { b[at["xattrs"]+inodeSize+xattrHeaderSize+1] = 0x81 },
		"xattr value size":       put16(at["xattrs"]+inodeSize+xattrHeaderSize+2, 500),
		"symlink block":          put32(at["long"]+16, 1<<30),
		"symlink chunks":         put16(at["symlink"], 1|layoutChunk<<1),
		"directory chunks":       put16(root, 1|layoutChunk<<1),
		"directory size":         put64(root+8, 1<<40),
		"empty directory":        put64(at["sub"]+8, 0),
		"directory names at":     put16(root+inodeSize+8, 13),
		"directory no names":     put16(root+inodeSize+8, 0),
		"directory name offset":  put16(root+inodeSize+direntSize+8, 4000),
		"directory entry type":   func(b []byte) { b[root+inodeSize+10] = 1 },
		"directory reserved":     func(b []byte) { b[root+inodeSize+11] = 1 },
		"name order":             func(b []byte) { copy(b[bytes.Index(b, []byte("chardir")):], "zhar") },
		"name with slash":        func(b []byte) { copy(b[bytes.Index(b, []byte("chardir")):], "c/ar") },
		"name with NUL":          func(b []byte) { copy(b[bytes.Index(b, []byte("chardir")):], "c\x00ar") },
		"entry beyond image":     put64(root+inodeSize+2*direntSize, 1<<60),
		"directory twice":        func(b []byte) { nidOf("implicit")(b, "dir") },
		"directory in itself":    put64(at["dir"]+inodeSize+3*direntSize, uint64(root/slotSize)),
		"dot dot":                put64(at["sub"]+inodeSize+direntSize, uint64(root/slotSize)),
		"dot":                    put64(at["sub"]+inodeSize, uint64(root/slotSize)),
		"overlapping inodes":     func(b []byte) { nidOf("fifo")(b, "char") },
	} {
		image := bytes.Clone(original)
		change(image)
		if bytes.Equal(image, original) {
			t.Errorf("%s: changes nothing", name)
		}
		_, err := Read(bytes.NewReader(reseal(image)), int64(len(image)))
		if !errors.Is(err, blockfmt.ErrCorrupt) && !errors.Is(err, blockfmt.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadRefusesSizes(t *testing.T) {
	image := encode(t, small())
	for _, size := range []int64{-1, 0, 1, blockSize - 1, int64(len(image)) - 1, int64(len(image)) + blockSize, maxImage + blockSize, 1<<63 - blockSize} {
		if _, err := Read(bytes.NewReader(image), size); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	image[superOffset+100]++
	if _, err := Read(bytes.NewReader(image), int64(len(image))); !errors.Is(err, blockfmt.ErrCorrupt) {
		t.Errorf("wrong checksum: %v", err)
	}
	if _, err := Read(brokenReader{}, blockSize); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("broken reader: %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }
