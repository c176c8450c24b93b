package metadata

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
)

// WriteTo writes the tree as an EROFS image without file data and returns the bytes written. It fails with ErrCorrupt on a
// tree that contradicts itself and with ErrUnsupported on what EROFS or this package cannot hold. The same tree
// gives the same bytes. The tree must not change meanwhile; w gets large writes.
func (t *Tree) WriteTo(w io.Writer) (int64, error) {
	l, err := newLayout(t)
	if err != nil {
		return 0, err
	}
	sum := sha256.New()
	if err := l.emit(sum, superblock{}); err != nil { // the UUID names everything else in the image
		return 0, err
	}
	count := &counter{w: w}
	err = l.emit(count, l.superblock(sum))
	return count.n, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func (l *layout) superblock(sum hash.Hash) superblock {
	s := superblock{
		rootNid: uint16(l.nodes[0].offset / slotSize),
		inodes:  uint64(len(l.nodes)),
		blocks:  uint32(l.bytes() >> blockBits),
		devices: uint16(len(l.tree.Devices)),
		uuid:    [16]byte(sum.Sum(nil)),
	}
	s.uuid[6] = s.uuid[6]&0x0f | 0x80 // version 8 of RFC 9562, made by a rule of our own
	s.uuid[8] = s.uuid[8]&0x3f | 0x80
	if len(l.tree.Devices) > 0 {
		s.incompat = incompatDeviceTable
	}
	for i := range l.nodes {
		if l.nodes[i].layout == layoutChunk {
			s.incompat |= incompatChunked
			break
		}
	}
	return s
}

// emit writes the whole image.
func (l *layout) emit(w io.Writer, s superblock) error {
	out := &output{w: w, super: s}
	out.pad(deviceTable)
	for _, d := range l.tree.Devices {
		out.buf = appendDevice(out.buf, d)
	}
	for i := range l.nodes {
		n := &l.nodes[i]
		out.pad(n.offset)
		out.buf = l.appendInode(out.buf, n, uint32(i)+1)
		out.flush(flushSize)
	}
	out.pad(l.dataStart)
	for i := range l.nodes {
		if n := &l.nodes[i]; n.blocks > 0 {
			out.buf = l.appendBlocks(out.buf, n)
			out.flush(flushSize)
		}
	}
	out.flush(1)
	return out.err
}

// appendDevice appends a slot of the device table.
func appendDevice(b []byte, d Device) []byte {
	slot := [deviceSize]byte{}
	if d.Digest != "" {
		copy(slot[:], d.Digest.Encoded())
	}
	binary.LittleEndian.PutUint32(slot[64:], uint32(d.Size>>blockBits))
	return append(b, slot[:]...)
}

// appendInode appends an inode and everything that lies right behind it. b's length is the inode's offset in the image,
// apart from a multiple of blockSize.
func (l *layout) appendInode(b []byte, n *node, ino uint32) []byte {
	in := n.in
	d := diskInode{
		layout: n.layout, xattrWords: xattrWords(n.xattrSize), mode: uint16(in.Mode), size: uint64(n.size), ino: ino,
		uid: in.UID, gid: in.GID, mtime: in.Mtime, mtimeNsec: in.MtimeNsec, nlink: n.nlink,
	}
	switch {
	case in.LinkTo != "":
		d = diskInode{xattrWords: d.xattrWords, mode: TypeFile, ino: ino, nlink: n.nlink}
	case n.blocks > 0:
		d.data = uint32(l.dataStart>>blockBits + n.block)
	case n.layout == layoutChunk:
		d.data = chunkIndexes | uint32(n.chunkBits-blockBits)
	case in.Mode&TypeMask == TypeChar || in.Mode&TypeMask == TypeBlock:
		d.data = encodeDevice(in.Major, in.Minor)
	}
	b = appendXattrs(d.append(b), xattrsOf(in))
	switch n.layout {
	case layoutInline:
		b = l.appendData(b, n, n.blocks, n.blocks+1)
	case layoutChunk:
		b = appendPadding(b, chunkSize) // which is where the kernel looks, wherever the xattrs end
		b = appendChunks(b, n.size, n.chunkBits, n.extents)
	}
	return b
}

// appendBlocks appends the whole blocks of a directory or symlink.
func (l *layout) appendBlocks(b []byte, n *node) []byte {
	return appendPadding(l.appendData(b, n, 0, n.blocks), blockSize)
}

// appendData appends blocks first to end-1 of a directory or symlink, the last without padding.
func (l *layout) appendData(b []byte, n *node, first, end int64) []byte {
	if !n.in.IsDir() {
		return append(b, n.in.Target...) // one block at most
	}
	entries := n.entries
	k := int64(0)
	for names := range direntBlocks(n.names) {
		if k > first && k < end {
			b = appendPadding(b, blockSize)
		}
		if k >= first && k < end {
			b = l.appendDirents(b, names, entries)
		}
		entries = entries[len(names):]
		k++
	}
	return b
}
