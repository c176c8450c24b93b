package metadata

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Read reads an image of size bytes that WriteTo wrote. It checks everything that can contradict itself and
// fails with ErrCorrupt, or with ErrUnsupported on an EROFS image that uses more of the format. It takes memory in proportion
// to size, which is at most 1 GiB.
func Read(r io.ReaderAt, size int64) (*Tree, error) {
	if size < blockSize || size > maxImage || size%blockSize != 0 {
		return nil, fmt.Errorf("metadata image of %d bytes: %w", size, blockfmt.ErrCorrupt)
	}
	image := make([]byte, size)
	n, err := io.ReadFull(io.NewSectionReader(r, 0, size), image)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("%d of %d bytes: %w", n, size, blockfmt.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("metadata image: %w", err)
	}
	t, err := decode(image)
	if err != nil {
		return nil, fmt.Errorf("metadata image: %w", err)
	}
	return t, nil
}

func decode(image []byte) (*Tree, error) {
	s, err := decodeSuperblock(image[superOffset:blockSize])
	if err != nil {
		return nil, err
	}
	d := &decoder{image: image, left: int64(len(image)), known: make(map[uint64]*decoded)}
	if int64(s.blocks)*blockSize != d.left {
		return nil, fmt.Errorf("%d blocks in %d bytes: %w", s.blocks, len(image), blockfmt.ErrCorrupt)
	}
	if err := d.readDevices(int(s.devices)); err != nil {
		return nil, err
	}
	root, err := d.inode(uint64(s.rootNid), direntTypes[TypeDir])
	if err == nil {
		err = d.directory(root, uint64(s.rootNid), 0)
	}
	if err == nil {
		err = d.checkCounts(s.inodes)
	}
	if err != nil {
		return nil, err
	}
	return &Tree{Root: root.in, Devices: d.devices}, nil
}

// decoder reads an image. left is what remains of a budget of the image's size: every byte belongs to one thing only, so
// whoever needs more has overlapping structures and could otherwise make a small image a huge tree.
type decoder struct {
	image   []byte
	left    int64
	devices []Device
	known   map[uint64]*decoded // by nid
}

// decoded is an inode that has been read, with the names that have been found for it.
type decoded struct {
	in    *Inode
	disk  diskInode
	tail  int64 // where the data behind the inode and its xattrs begin
	names uint32
}

// take returns n bytes of the image and charges them to the budget.
func (d *decoder) take(offset, n int64) ([]byte, error) {
	if offset < 0 || n < 0 || offset > int64(len(d.image)) || n > int64(len(d.image))-offset || n > d.left {
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, offset, len(d.image), blockfmt.ErrCorrupt)
	}
	d.left -= n
	return d.image[offset : offset+n], nil
}

func (d *decoder) readDevices(n int) error {
	if n > maxDevices {
		return fmt.Errorf("%d devices: %w", n, blockfmt.ErrUnsupported)
	}
	table, err := d.take(deviceTable, int64(n)*deviceSize)
	if err != nil {
		return err
	}
	for ; len(table) > 0; table = table[deviceSize:] {
		dev := Device{Size: int64(binary.LittleEndian.Uint32(table[64:])) << blockBits}
		if table[0] != 0 {
			dev.Digest = digest.NewDigestFromEncoded(digest.SHA256, string(table[:64]))
			if _, err := hex.DecodeString(string(table[:64])); err != nil || dev.Digest.Validate() != nil {
				return fmt.Errorf("tag %q of device %d: %w", table[:64], len(d.devices), blockfmt.ErrCorrupt)
			}
		}
		if dev.Size>>blockBits == nullAddress || string(appendDevice(nil, dev)) != string(table[:deviceSize]) {
			return fmt.Errorf("device %d: %w", len(d.devices), blockfmt.ErrUnsupported)
		}
		d.devices = append(d.devices, dev)
	}
	return nil
}

// inode returns the inode with this nid, which a directory entry of this kind names, reading it at the first time.
func (d *decoder) inode(nid uint64, kind uint8) (*decoded, error) {
	n := d.known[nid]
	if n == nil {
		var err error
		if n, err = d.readInode(nid); err != nil {
			return nil, fmt.Errorf("inode %d: %w", nid, err)
		}
		d.known[nid] = n
	}
	n.names++
	if direntTypes[n.in.Mode&TypeMask] != kind || kind == 0 || n.in.IsDir() && n.names > 1 {
		return nil, fmt.Errorf("inode %d of mode %o has name %d of kind %d: %w", nid, n.in.Mode, n.names, kind, blockfmt.ErrCorrupt)
	}
	return n, nil
}

func (d *decoder) readInode(nid uint64) (*decoded, error) {
	if nid > maxImage/slotSize {
		return nil, fmt.Errorf("beyond the image: %w", blockfmt.ErrCorrupt)
	}
	at := int64(nid) * slotSize
	b, err := d.take(at, inodeSize)
	if err != nil {
		return nil, err
	}
	disk, err := decodeInode(b)
	if err != nil {
		return nil, err
	}
	size := xattrBytes(disk.xattrWords)
	xattrs, err := d.take(at+inodeSize, size)
	if err != nil {
		return nil, err
	}
	n := &decoded{disk: disk, tail: at + inodeSize + size, in: &Inode{
		Mode: uint32(disk.mode), UID: disk.uid, GID: disk.gid, Mtime: disk.mtime, MtimeNsec: disk.mtimeNsec,
	}}
	if err := decodeXattrs(n.in, xattrs); err != nil {
		return nil, err
	}
	return n, d.readContent(n)
}

// readContent reads what the inode holds, but for the entries of a directory.
func (d *decoder) readContent(n *decoded) error {
	var err error
	size := int64(n.disk.size)
	if n.in.LinkTo != "" && (size != 0 || n.in.Xattrs != nil) {
		return fmt.Errorf("link to a lower layer with %d bytes: %w", size, blockfmt.ErrCorrupt)
	}
	switch n.in.Mode & TypeMask {
	case TypeFile:
		n.in.Size = size
		if size > 0 {
			n.in.Extents, err = d.readChunks(n)
		}
	case TypeSymlink:
		if size == 0 || size > maxTarget {
			return fmt.Errorf("symlink target of %d bytes: %w", size, blockfmt.ErrCorrupt)
		}
		var target []byte
		if target, err = d.dataBlock(n, 0); err == nil {
			n.in.Target = string(target)
			err = checkTarget(n.in.Target)
		}
	case TypeChar, TypeBlock:
		n.in.Major, n.in.Minor = decodeDevice(n.disk.data)
		fallthrough
	case TypeFifo, TypeSocket:
		if size != 0 {
			err = fmt.Errorf("special file of %d bytes: %w", size, blockfmt.ErrCorrupt)
		}
	}
	return err
}

func (d *decoder) readChunks(n *decoded) ([]Extent, error) {
	if n.disk.layout != layoutChunk || n.disk.data&^maxChunkBits != chunkIndexes {
		return nil, fmt.Errorf("file with layout %d, format %#x: %w", n.disk.layout, n.disk.data, blockfmt.ErrUnsupported)
	}
	size, bits := int64(n.disk.size), blockBits+int(n.disk.data&maxChunkBits)
	b, err := d.take(roundUp(n.tail, chunkSize), chunkCount(size, bits)*chunkSize)
	if err != nil {
		return nil, err
	}
	return decodeChunks(b, size, bits, d.devices)
}

// dataBlock returns block k of the data of a directory or symlink.
func (d *decoder) dataBlock(n *decoded, k int64) ([]byte, error) {
	size := min(int64(n.disk.size)-k*blockSize, blockSize)
	last := k == (int64(n.disk.size)-1)/blockSize
	switch {
	case n.disk.layout == layoutInline && last:
		if n.tail/blockSize != (n.tail+size-1)/blockSize {
			return nil, fmt.Errorf("inline data cross a block: %w", blockfmt.ErrCorrupt)
		}
		return d.take(n.tail, size)
	case n.disk.layout == layoutInline || n.disk.layout == layoutPlain:
		return d.take((int64(n.disk.data)+k)*blockSize, size)
	}
	return nil, fmt.Errorf("directory or symlink with layout %d: %w", n.disk.layout, blockfmt.ErrUnsupported)
}

// directory reads the entries of a directory and everything below it.
func (d *decoder) directory(dir *decoded, parent uint64, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories nested deeper than %d: %w", maxDepth, blockfmt.ErrCorrupt)
	}
	list, err := d.dirents(dir)
	if err != nil {
		return err
	}
	self := uint64(dir.tail-xattrBytes(dir.disk.xattrWords)-inodeSize) / slotSize
	dots := 0
	dir.in.Entries = make(map[string]*Inode, max(len(list)-2, 0))
	for _, e := range list {
		if e.name == "." && e.nid == self || e.name == ".." && e.nid == parent {
			if e.kind == direntTypes[TypeDir] {
				dots++
			}
			continue
		}
		n, err := d.inode(e.nid, e.kind)
		if err == nil && n.in.IsDir() {
			dir.names++ // its "..", so that names is what st_nlink should be
			err = d.directory(n, self, depth+1)
		}
		if err == nil {
			err = checkName(e.name)
		}
		if err != nil {
			return err
		}
		dir.in.Entries[e.name] = n.in
	}
	if dots != 2 {
		return fmt.Errorf("inode %d: a directory without . and ..: %w", self, blockfmt.ErrCorrupt)
	}
	dir.names++ // its "."
	return nil
}

func (d *decoder) dirents(dir *decoded) ([]dirent, error) {
	var list []dirent
	size := int64(dir.disk.size)
	if size > d.left {
		return nil, fmt.Errorf("directory of %d bytes: %w", size, blockfmt.ErrCorrupt)
	}
	for k := int64(0); k*blockSize < size; k++ {
		b, err := d.dataBlock(dir, k)
		if err != nil {
			return nil, err
		}
		if list, err = decodeDirents(list, b); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// checkCounts compares what has been found with the counts in the image.
func (d *decoder) checkCounts(inodes uint64) error {
	if uint64(len(d.known)) != inodes {
		return fmt.Errorf("%d inodes, the superblock says %d: %w", len(d.known), inodes, blockfmt.ErrCorrupt)
	}
	for nid, n := range d.known {
		if n.names != n.disk.nlink {
			return fmt.Errorf("inode %d has %d links, not %d: %w", nid, n.names, n.disk.nlink, blockfmt.ErrCorrupt)
		}
	}
	return nil
}
