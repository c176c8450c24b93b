package metadata

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/xylem-project/xylem/blockfmt"
)

// The part of the EROFS on-disk format that is used here: little-endian, 4 KiB blocks, inodes of 64 bytes ("extended"),
// no compression, no shared xattrs. The image is
//
//	block 0: 1 KiB of zeros, superblock, device table (which may go on into further blocks)
//	inodes from the next 32-byte slot on, each followed by its xattrs and then its chunk indexes, its symlink target or
//	the last part of its directory
//	whole blocks of directories and long symlinks
const (
	blockBits   = 12
	blockSize   = 1 << blockBits
	superOffset = 1024
	superSize   = 128
	slotSize    = 32 // a node id (nid) counts slots from the start of the image
	inodeSize   = 64
	deviceSize  = 128
	deviceTable = superOffset + superSize
	direntSize  = 12
	chunkSize   = 8 // of a chunk index

	superMagic = 0xe0f5e1e2

	compatChecksum = 0x1
	compatMtime    = 0x2
	compatFeatures = compatChecksum | compatMtime

	incompatChunked     = 0x4
	incompatDeviceTable = 0x8

	formatExtended = 1 // bit 0 of i_format; the data layout follows from bit 1
	layoutPlain    = 0 // whole blocks at i_u
	layoutInline   = 2 // whole blocks at i_u, and the last part right behind the inode
	layoutChunk    = 4 // chunk indexes behind the inode

	chunkIndexes = 0x20       // chunk format: 8-byte indexes; the lower bits are log2(chunk size / block size)
	maxChunkBits = 31         // the largest such value
	nullAddress  = 0xffffffff // block address of a hole

	maxName    = 255
	maxTarget  = 4095
	maxDepth   = 2048    // directories above each other, what PATH_MAX allows
	maxDevices = 4096    // keeps the root's nid below 65536, which the superblock demands
	maxImage   = 1 << 30 // bytes of a whole image, for writer and reader
)

// Directory entry types, in the order of the file types they stand for.
var direntTypes = map[uint32]uint8{
	TypeFile: 1, TypeDir: 2, TypeChar: 3, TypeBlock: 4, TypeFifo: 5, TypeSocket: 6, TypeSymlink: 7,
}

// superblock is what differs between images.
type superblock struct {
	incompat uint32
	rootNid  uint16
	inodes   uint64
	blocks   uint32
	devices  uint16
	uuid     [16]byte
}

// encode fills in the 3 KiB of block 0 from superOffset on, where the device table has been filled in already.
func (s *superblock) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatFeatures)
	b[12] = blockBits
	le.PutUint16(b[14:], s.rootNid)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	copy(b[48:64], s.uuid[:])
	le.PutUint32(b[80:], s.incompat)
	le.PutUint16(b[86:], s.devices)
	le.PutUint16(b[88:], deviceTable/deviceSize)
	le.PutUint32(b[4:], superChecksum(b))
}

// superChecksum is the CRC-32C without the usual final inversion, over the rest of the block, the checksum itself taken as 0.
func superChecksum(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(0, table, b[:4])
	crc = crc32.Update(crc, table, []byte{0, 0, 0, 0})
	return ^crc32.Update(crc, table, b[8:])
}

// decodeSuperblock checks everything in the superblock that encode writes.
func decodeSuperblock(b []byte) (superblock, error) {
	le := binary.LittleEndian
	s := superblock{
		incompat: le.Uint32(b[80:]),
		rootNid:  le.Uint16(b[14:]),
		inodes:   le.Uint64(b[16:]),
		blocks:   le.Uint32(b[36:]),
		devices:  le.Uint16(b[86:]),
		uuid:     [16]byte(b[48:64]),
	}
	if le.Uint32(b) != superMagic {
		return s, fmt.Errorf("no EROFS superblock: %w", blockfmt.ErrCorrupt)
	}
	if sum := superChecksum(b); sum != le.Uint32(b[4:]) {
		return s, fmt.Errorf("superblock checksum is %08x, want %08x: %w", le.Uint32(b[4:]), sum, blockfmt.ErrCorrupt)
	}
	again := make([]byte, len(b))
	copy(again[superSize:], b[superSize:])
	s.encode(again)
	if s.incompat&^uint32(incompatChunked|incompatDeviceTable) != 0 || string(again) != string(b) {
		return s, fmt.Errorf("EROFS features that block images do not use: %w", blockfmt.ErrUnsupported)
	}
	return s, nil
}

// diskInode is an inode as it lies on disk.
type diskInode struct {
	layout     uint8
	xattrWords uint16 // 4-byte words of xattrs plus 1, or 0
	mode       uint16
	size       uint64
	data       uint32 // block address, chunk format or device number
	ino        uint32
	uid, gid   uint32
	mtime      int64
	mtimeNsec  uint32
	nlink      uint32
}

func (d *diskInode) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, formatExtended|uint16(d.layout)<<1)
	b = le.AppendUint16(b, d.xattrWords)
	b = le.AppendUint16(b, d.mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, d.size)
	b = le.AppendUint32(b, d.data)
	b = le.AppendUint32(b, d.ino)
	b = le.AppendUint32(b, d.uid)
	b = le.AppendUint32(b, d.gid)
	b = le.AppendUint64(b, uint64(d.mtime))
	b = le.AppendUint32(b, d.mtimeNsec)
	b = le.AppendUint32(b, d.nlink)
	return append(b, make([]byte, 16)...)
}

func decodeInode(b []byte) (diskInode, error) {
	le := binary.LittleEndian
	format := le.Uint16(b)
	d := diskInode{
		layout:     uint8(format >> 1),
		xattrWords: le.Uint16(b[2:]),
		mode:       le.Uint16(b[4:]),
		size:       le.Uint64(b[8:]),
		data:       le.Uint32(b[16:]),
		ino:        le.Uint32(b[20:]),
		uid:        le.Uint32(b[24:]),
		gid:        le.Uint32(b[28:]),
		mtime:      int64(le.Uint64(b[32:])),
		mtimeNsec:  le.Uint32(b[40:]),
		nlink:      le.Uint32(b[44:]),
	}
	if format&1 != formatExtended || format > formatExtended|layoutChunk<<1 {
		return d, fmt.Errorf("inode format %#x: %w", format, blockfmt.ErrUnsupported)
	}
	if d.mtimeNsec >= 1e9 || d.size > 1<<63-1 {
		return d, fmt.Errorf("%d nanoseconds, %d bytes: %w", d.mtimeNsec, d.size, blockfmt.ErrCorrupt)
	}
	return d, nil
}

// encodeDevice and decodeDevice convert device numbers as Linux's new_encode_dev does: 12 bits major, 20 bits minor.
func encodeDevice(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }

func decodeDevice(n uint32) (major, minor uint32) { return n >> 8 & 0xfff, n&0xff | n>>12&0xfff00 }

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
