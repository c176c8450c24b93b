package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"strings"

	"github.com/xylem-project/xylem/blockfmt"
)

// A directory is a sequence of blocks. Each holds entries of 12 bytes, then their names in the same order; the names of
// all blocks together ascend bytewise, "." and ".." among them, so that the kernel can search by halving.

// direntBlocks cuts the sorted names of a directory into blocks and gives the names and the bytes of each.
func direntBlocks(names []string) iter.Seq2[[]string, int] {
	return func(yield func([]string, int) bool) {
		first, size := 0, 0
		for i, name := range names {
			n := direntSize + len(name)
			if size+n > blockSize {
				if !yield(names[first:i], size) {
					return
				}
				first, size = i, 0
			}
			size += n
		}
		yield(names[first:], size)
	}
}

// dirent is a directory entry that has been read.
type dirent struct {
	name string
	nid  uint64
	kind uint8
}

// appendDirents appends one block with these names for the nodes with these numbers, without padding.
func (l *layout) appendDirents(b []byte, names []string, numbers []int32) []byte {
	offset := len(names) * direntSize
	for i, name := range names {
		n := &l.nodes[numbers[i]]
		b = binary.LittleEndian.AppendUint64(b, uint64(n.offset/slotSize))
		b = binary.LittleEndian.AppendUint16(b, uint16(offset))
		b = append(b, n.kind(), 0)
		offset += len(name)
	}
	for _, name := range names {
		b = append(b, name...)
	}
	return b
}

// decodeDirents appends the entries of one block to list, the entries of the blocks before it.
func decodeDirents(list []dirent, b []byte) ([]dirent, error) {
	bad := fmt.Errorf("directory block: %w", blockfmt.ErrCorrupt)
	if len(b) < direntSize {
		return nil, bad
	}
	namesAt := int(binary.LittleEndian.Uint16(b[8:]))
	if namesAt < direntSize || namesAt%direntSize != 0 || namesAt >= len(b) {
		return nil, bad
	}
	for at := 0; at < namesAt; at += direntSize {
		start, end := int(binary.LittleEndian.Uint16(b[at+8:])), len(b)
		if at+direntSize < namesAt {
			end = int(binary.LittleEndian.Uint16(b[at+direntSize+8:]))
		}
		if start < namesAt || start >= end || end > len(b) || b[at+11] != 0 {
			return nil, bad
		}
		raw := b[start:end]
		if at+direntSize == namesAt {
			raw = bytes.TrimRight(raw, "\x00") // only the last name is followed by padding
		}
		name := string(raw)
		if name != "." && name != ".." {
			if err := checkName(name); err != nil {
				return nil, err
			}
		}
		if len(list) > 0 && list[len(list)-1].name >= name {
			return nil, fmt.Errorf("directory entries %.80q and %.80q out of order: %w", list[len(list)-1].name, name, blockfmt.ErrCorrupt)
		}
		list = append(list, dirent{name, binary.LittleEndian.Uint64(b[at:]), b[at+10]})
	}
	return list, nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("file name %.80q of %d bytes: %w", name, len(name), blockfmt.ErrCorrupt)
	}
	return nil
}
