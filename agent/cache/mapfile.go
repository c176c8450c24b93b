package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// The map beside a blob's data says which blocks of it are valid, little-endian:
//
//	0    magic, 8 bytes
//	8    boot ID of the kernel under which it is written, 64 bytes, zero-padded
//	72   uncompressed size, 8 bytes
//	80   number of blocks, 8 bytes
//	88   SHA-256 of the chunk index, 32 bytes
//	120  digest of the stored blob, 132 bytes, zero-padded
//	252  CRC-32C of the header so far
//	256  bit i (of byte i/8, lowest first): block i is valid; padded to 8 bytes
//	...  CRC-32C of the raw bytes of each block, 4 bytes each
//	...  raw length of each block, 4 bytes each
//
// Written in the order data, checksum, bit: whatever a kill leaves behind, a bit that is set speaks the truth.
const (
	mapMagic      = "XYLMAP1\n"
	mapHeaderSize = 256
	mapSuffix     = ".map"
	maxDigestText = 132
	maxMapSize    = mapHeaderSize + blockfmt.MaxBlocks/8 + 8 + 8*blockfmt.MaxBlocks
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// blockMap is a map file in memory.
type blockMap struct {
	bootID  string
	rawSize int64
	blocks  int
	index   [sha256.Size]byte
	blob    digest.Digest
	bits    []byte
	sums    []byte // 4 bytes a block
	lengths []byte // 4 bytes a block
}

func newMap(ix *blockfmt.Index, indexSum [sha256.Size]byte, bootID string) *blockMap {
	n := ix.Len()
	m := &blockMap{bootID: bootID, rawSize: ix.RawSize(), blocks: n, index: indexSum, blob: ix.Blob(),
		bits: make([]byte, bitsSize(n)), sums: make([]byte, 4*n), lengths: make([]byte, 4*n)}
	for i := range n {
		binary.LittleEndian.PutUint32(m.lengths[4*i:], uint32(ix.Ref(i).RawLength))
	}
	return m
}

func bitsSize(blocks int) int          { return (blocks + 63) / 64 * 8 }
func bitOffset(block int) int64        { return mapHeaderSize + int64(block/8) }
func sumOffset(blocks, i int) int64    { return mapHeaderSize + int64(bitsSize(blocks)) + 4*int64(i) }
func (m *blockMap) get(i int) bool     { return m.bits[i/8]&(1<<(i%8)) != 0 }
func (m *blockMap) sum(i int) uint32   { return binary.LittleEndian.Uint32(m.sums[4*i:]) }
func (m *blockMap) length(i int) int64 { return int64(binary.LittleEndian.Uint32(m.lengths[4*i:])) }

func (m *blockMap) validBytes() (n int64) {
	for i := range m.blocks {
		if m.get(i) {
			n += m.length(i)
		}
	}
	return n
}

func (m *blockMap) encode() []byte {
	b := make([]byte, mapHeaderSize, mapHeaderSize+len(m.bits)+len(m.sums)+len(m.lengths))
	copy(b, mapMagic)
	copy(b[8:72], m.bootID)
	binary.LittleEndian.PutUint64(b[72:], uint64(m.rawSize))
	binary.LittleEndian.PutUint64(b[80:], uint64(m.blocks))
	copy(b[88:], m.index[:])
	copy(b[120:252], m.blob)
	binary.LittleEndian.PutUint32(b[252:], crc32.Checksum(b[:252], crcTable))
	return append(append(append(b, m.bits...), m.sums...), m.lengths...)
}

func decodeMap(b []byte) (*blockMap, error) {
	if len(b) < mapHeaderSize || string(b[:8]) != mapMagic || crc32.Checksum(b[:252], crcTable) != binary.LittleEndian.Uint32(b[252:]) {
		return nil, fmt.Errorf("map: no header: %w", blockfmt.ErrCorrupt)
	}
	rawSize, blocks := binary.LittleEndian.Uint64(b[72:]), binary.LittleEndian.Uint64(b[80:])
	if blocks > blockfmt.MaxBlocks || rawSize > blockfmt.MaxBlocks*blockfmt.MaxBlockSize {
		return nil, fmt.Errorf("map: %d blocks, %d bytes: %w", blocks, rawSize, blockfmt.ErrCorrupt)
	}
	n := int(blocks)
	m := &blockMap{bootID: padded(b[8:72]), rawSize: int64(rawSize), blocks: n, index: [32]byte(b[88:120]), blob: digest.Digest(padded(b[120:252]))}
	if len(b) != mapHeaderSize+bitsSize(n)+8*n {
		return nil, fmt.Errorf("map: %d bytes for %d blocks: %w", len(b), n, blockfmt.ErrCorrupt)
	}
	m.bits, b = b[mapHeaderSize:mapHeaderSize+bitsSize(n)], b[mapHeaderSize+bitsSize(n):]
	m.sums, m.lengths = b[:4*n], b[4*n:]
	return m, nil
}

func padded(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

func readMap(path string) (*blockMap, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMapSize+1))
	if err != nil {
		return nil, err
	}
	return decodeMap(b)
}

// check says why the map and data of the given size cannot be used.
func (m *blockMap) check(name string, size int64, complete bool, bootID string) error {
	switch {
	case blobName(m.blob, m.index) != name || size != m.rawSize:
		return fmt.Errorf("%d bytes of another blob: %w", size, blockfmt.ErrCorrupt)
	case !complete && m.bootID != cut(bootID, 64):
		return errors.New("written before the last boot, and not synced")
	}
	return nil
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// blobName is the file name for a blob as an index describes it: who makes a second index for a blob gets a second
// file, and cannot put other bytes under the first.
func blobName(blob digest.Digest, index [sha256.Size]byte) string {
	return strings.ReplaceAll(blob.String(), ":", "-") + "-" + hex.EncodeToString(index[:8])
}

func indexSum(ix *blockfmt.Index) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", ix.Blob(), ix.StoredSize())
	h.Write(ix.Encode())
	return [sha256.Size]byte(h.Sum(nil))
}
