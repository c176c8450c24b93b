package metadata

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/xylem-project/xylem/blockfmt"
)

// checkExtents says whether a file's extents can be expressed as chunks on these devices.
func checkExtents(in *Inode, devices []Device) error {
	end := int64(0)
	for _, e := range in.Extents {
		fits := e.Length > 0 && e.FileOffset >= end && e.Length <= in.Size-e.FileOffset
		if !fits || e.FileOffset%blockSize != 0 || e.DeviceOffset%blockSize != 0 {
			return fmt.Errorf("extent %+v does not fit into a file of %d bytes: %w", e, in.Size, blockfmt.ErrCorrupt)
		}
		if end = e.FileOffset + e.Length; end%blockSize != 0 && end != in.Size {
			return fmt.Errorf("extent %+v ends inside a page: %w", e, blockfmt.ErrCorrupt)
		}
		if err := checkRange(e, devices); err != nil {
			return err
		}
	}
	return nil
}

func checkRange(e Extent, devices []Device) error {
	if e.Device < 0 || e.Device >= len(devices) {
		return fmt.Errorf("device %d of %d: %w", e.Device, len(devices), blockfmt.ErrCorrupt)
	}
	size := devices[e.Device].Size
	if e.DeviceOffset < 0 || e.DeviceOffset > size || roundUp(e.Length, blockSize) > size-e.DeviceOffset {
		return fmt.Errorf("%d bytes at %d of device %d, which has %d: %w", e.Length, e.DeviceOffset, e.Device, size, blockfmt.ErrCorrupt)
	}
	return nil
}

// addExtent appends e to extents, or lengthens the last one if e continues it in the file and on the device.
func addExtent(extents []Extent, e Extent) []Extent {
	if len(extents) > 0 {
		last := &extents[len(extents)-1]
		if last.Device == e.Device && last.FileOffset+last.Length == e.FileOffset && last.DeviceOffset+last.Length == e.DeviceOffset {
			last.Length += e.Length
			return extents
		}
	}
	return append(extents, e)
}

// joinExtents returns the shortest equal list. It does not change extents and may return it.
func joinExtents(extents []Extent) []Extent {
	if len(extents) < 2 {
		return extents
	}
	joined := make([]Extent, 0, len(extents))
	for _, e := range extents {
		joined = addExtent(joined, e)
	}
	return joined
}

// chunkBitsFor returns log2 of the largest chunk size in bytes with which every chunk of the file is either a hole or one
// contiguous range of a device: the one that needs the fewest indexes. Extents must be joined and checked.
func chunkBitsFor(size int64, extents []Extent) int {
	marks := uint64(0) // every place where one range ends and another begins
	for _, e := range extents {
		marks |= uint64(e.FileOffset)
		if end := e.FileOffset + e.Length; end < size {
			marks |= uint64(end)
		}
	}
	n := bits.TrailingZeros64(marks)
	if marks == 0 {
		n = bits.Len64(uint64(size - 1))
	}
	return min(max(n, blockBits), blockBits+maxChunkBits)
}

// chunkCount returns the number of chunk indexes of a file.
func chunkCount(size int64, bits int) int64 {
	if size == 0 {
		return 0
	}
	return (size-1)>>bits + 1
}

// appendChunks appends the chunk indexes of a file.
func appendChunks(b []byte, size int64, bits int, extents []Extent) []byte {
	for i := range chunkCount(size, bits) {
		at := i << bits
		for len(extents) > 0 && extents[0].FileOffset+extents[0].Length <= at {
			extents = extents[1:]
		}
		device, block := uint16(0), uint32(nullAddress)
		if len(extents) > 0 && extents[0].FileOffset <= at {
			device = uint16(extents[0].Device + 1)
			block = uint32((extents[0].DeviceOffset + at - extents[0].FileOffset) >> blockBits)
		}
		b = append(b, 0, 0)
		b = binary.LittleEndian.AppendUint16(b, device)
		b = binary.LittleEndian.AppendUint32(b, block)
	}
	return b
}

// decodeChunks is the inverse of appendChunks: b holds all chunk indexes of a file.
func decodeChunks(b []byte, size int64, bits int, devices []Device) ([]Extent, error) {
	var extents []Extent
	for i := range chunkCount(size, bits) {
		at := i << bits
		if binary.LittleEndian.Uint16(b) != 0 {
			return nil, fmt.Errorf("chunk index with flags: %w", blockfmt.ErrUnsupported)
		}
		device, block := binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])
		b = b[chunkSize:]
		if block == nullAddress {
			continue
		}
		e := Extent{at, min(1<<bits, size-at), int(device) - 1, int64(block) << blockBits}
		if err := checkRange(e, devices); err != nil {
			return nil, err
		}
		extents = addExtent(extents, e)
	}
	return extents, nil
}
