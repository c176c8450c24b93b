package metadata

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// node is an inode with its place in the image.
type node struct {
	in        *Inode
	parent    int32    // node number of a directory's parent; the root's is itself
	nlink     uint32   // names, or 2 and the subdirectories
	names     []string // of a directory: sorted, with "." and ".."
	entries   []int32  // and the node numbers that they stand for
	extents   []Extent // of a file, joined
	offset    int64    // bytes from the start of the image
	size      int64    // i_size
	xattrSize int64
	layout    uint8
	chunkBits int   // layoutChunk
	tail      int64 // layoutInline: bytes of data behind the inode and its xattrs
	blocks    int64 // whole blocks of data
	block     int64 // the first of them, counted from layout.dataStart
}

// kind is the type of the directory entries that name the inode.
func (n *node) kind() uint8 {
	if n.in.LinkTo != "" {
		return direntTypes[TypeFile]
	}
	return direntTypes[n.in.Mode&TypeMask]
}

// layout is an image whose every byte has its place. Inodes lie in the order of their paths, those of one directory
// together, because they are looked at together; the whole blocks of directories lie behind all inodes.
type layout struct {
	tree       *Tree
	nodes      []node // in the order of their offsets
	index      map[*Inode]int32
	end        int64 // bytes up to the end of the inodes
	dataStart  int64 // bytes, a multiple of blockSize
	dataBlocks int64
}

func newLayout(t *Tree) (*layout, error) {
	l := &layout{tree: t, index: make(map[*Inode]int32), end: deviceTable}
	if t.Root == nil || !t.Root.IsDir() || t.Root.LinkTo != "" {
		return nil, fmt.Errorf("the root is not a directory: %w", blockfmt.ErrCorrupt)
	}
	if len(t.Devices) > maxDevices {
		return nil, fmt.Errorf("%d devices, at most %d: %w", len(t.Devices), maxDevices, blockfmt.ErrUnsupported)
	}
	for i, d := range t.Devices {
		if d.Digest != "" && (d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256) {
			return nil, fmt.Errorf("device %d has digest %.100q: %w", i, d.Digest, blockfmt.ErrUnsupported)
		}
		if d.Size < 0 || d.Size%blockSize != 0 || d.Size>>blockBits >= nullAddress {
			return nil, fmt.Errorf("device %d of %d bytes: %w", i, d.Size, blockfmt.ErrUnsupported)
		}
	}
	l.end += int64(len(t.Devices)) * deviceSize
	err := l.add(t.Root, 0)
	if err == nil {
		err = l.fill(0, 0)
	}
	l.dataStart = roundUp(l.end+xattrHeaderSize, blockSize) // fsck.erofs reads that much behind an inode, also without xattrs
	return l, err
}

// bytes returns the size of the image.
func (l *layout) bytes() int64 { return l.dataStart + l.dataBlocks*blockSize }

// fill adds what is in the directory with this node number: first its entries, then what is in its subdirectories.
func (l *layout) fill(dir int32, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories nested deeper than %d: %w", maxDepth, blockfmt.ErrUnsupported)
	}
	in, names := l.nodes[dir].in, l.nodes[dir].names
	numbers := make([]int32, len(names))
	for i, name := range names {
		var err error
		switch name {
		case ".":
			numbers[i] = dir
		case "..":
			numbers[i] = l.nodes[dir].parent
		default:
			numbers[i], err = l.enter(in.Entries[name], dir)
		}
		if err != nil {
			return fmt.Errorf("%.300q: %w", name, err)
		}
	}
	l.nodes[dir].entries = numbers
	for i, name := range names {
		if number := numbers[i]; l.nodes[number].names != nil && name != "." && name != ".." {
			if err := l.fill(number, depth+1); err != nil {
				return fmt.Errorf("%.300q: %w", name, err)
			}
		}
	}
	return nil
}

// enter gives an inode one more name in the directory with node number dir, and returns the inode's own node number.
func (l *layout) enter(in *Inode, dir int32) (int32, error) {
	i, known := l.index[in]
	isDir := in.IsDir() && in.LinkTo == ""
	switch {
	case known && isDir:
		return 0, fmt.Errorf("a directory with two names: %w", blockfmt.ErrCorrupt)
	case known:
		l.nodes[i].nlink++
		return i, nil
	case isDir:
		l.nodes[dir].nlink++
	}
	return int32(len(l.nodes)), l.add(in, dir)
}

// add gives an inode its place.
func (l *layout) add(in *Inode, parent int32) error {
	n := node{in: in, parent: parent, nlink: 1}
	err := checkInode(in)
	if err == nil {
		n.xattrSize, err = xattrAreaSize(in)
	}
	if err == nil {
		err = l.measure(&n)
	}
	if err != nil {
		return err
	}
	l.place(&n)
	if l.end > maxImage || l.dataBlocks*blockSize > maxImage-l.end {
		return fmt.Errorf("more than %d bytes of metadata: %w", maxImage, blockfmt.ErrUnsupported)
	}
	l.index[in] = int32(len(l.nodes))
	l.nodes = append(l.nodes, n)
	return nil
}

func checkInode(in *Inode) error {
	if in.LinkTo != "" {
		return nil
	}
	if direntTypes[in.Mode&TypeMask] == 0 || in.Mode > 0xffff || in.MtimeNsec >= 1e9 {
		return fmt.Errorf("mode %o, %d nanoseconds: %w", in.Mode, in.MtimeNsec, blockfmt.ErrCorrupt)
	}
	if in.Implicit && !in.IsDir() || len(in.Entries) > 0 && !in.IsDir() {
		return fmt.Errorf("a directory's attributes on mode %o: %w", in.Mode, blockfmt.ErrCorrupt)
	}
	if in.Major > 0xfff || in.Minor > 0xfffff {
		return fmt.Errorf("device number %d:%d: %w", in.Major, in.Minor, blockfmt.ErrUnsupported)
	}
	return nil
}

// measure finds out the size and layout of the inode's data.
func (l *layout) measure(n *node) error {
	if n.in.LinkTo != "" {
		return nil
	}
	switch n.in.Mode & TypeMask {
	case TypeFile:
		return l.measureFile(n)
	case TypeDir:
		return n.measureDir()
	case TypeSymlink:
		if err := checkTarget(n.in.Target); err != nil {
			return err
		}
		n.setData(int64(len(n.in.Target)))
	}
	return nil
}

func checkTarget(target string) error {
	if target == "" || len(target) > maxTarget || strings.Contains(target, "\x00") {
		return fmt.Errorf("symlink target %.80q of %d bytes: %w", target, len(target), blockfmt.ErrUnsupported)
	}
	return nil
}

func (l *layout) measureFile(n *node) error {
	if n.in.Size < 0 {
		return fmt.Errorf("%d bytes: %w", n.in.Size, blockfmt.ErrCorrupt)
	}
	if err := checkExtents(n.in, l.tree.Devices); err != nil {
		return err
	}
	n.size = n.in.Size
	if n.size > 0 {
		n.layout = layoutChunk
		n.extents = joinExtents(n.in.Extents)
		n.chunkBits = chunkBitsFor(n.size, n.extents)
	}
	return nil
}

func (n *node) measureDir() error {
	n.nlink = 2
	n.names = append(slices.AppendSeq(make([]string, 0, len(n.in.Entries)+2), maps.Keys(n.in.Entries)), ".", "..")
	slices.Sort(n.names)
	for name, in := range n.in.Entries {
		if in == nil {
			return fmt.Errorf("%.80q has no inode: %w", name, blockfmt.ErrCorrupt)
		}
		if err := checkName(name); err != nil {
			return err
		}
	}
	size := int64(0)
	for _, bytes := range direntBlocks(n.names) {
		size = roundUp(size, blockSize) + int64(bytes)
	}
	n.setData(size)
	return nil
}

// setData decides where size bytes of a directory or symlink go: the last part behind the inode if it fits into one block
// with it, because inline data must not cross into the next.
func (n *node) setData(size int64) {
	n.size = size
	n.blocks = (size - 1) / blockSize
	if tail := size - n.blocks*blockSize; inodeSize+n.xattrSize+tail <= blockSize {
		n.layout, n.tail = layoutInline, tail
		return
	}
	n.layout = layoutPlain
	n.blocks++
}

// place puts the node behind the ones before it.
func (l *layout) place(n *node) {
	n.offset = roundUp(l.end, slotSize)
	end := n.offset + inodeSize + n.xattrSize + n.tail
	if n.layout == layoutInline && n.offset/blockSize != (end-1)/blockSize {
		n.offset = roundUp(n.offset, blockSize)
		end = n.offset + inodeSize + n.xattrSize + n.tail
	}
	if n.layout == layoutChunk {
		end = roundUp(end, chunkSize) + chunkSize*chunkCount(n.size, n.chunkBits)
	}
	l.end = end
	n.block = l.dataBlocks
	l.dataBlocks += n.blocks
}
