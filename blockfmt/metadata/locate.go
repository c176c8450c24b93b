package metadata

import (
	"cmp"
	"slices"
	"sort"
)

// Piece is a range of a file. Its fields mean what those of blockfmt.ProfileRange do.
type Piece struct {
	Path           string
	Offset, Length int64
}

// Locator finds the file ranges that a range of a device holds: the inverse of a tree's extents. It does not change and is
// safe for concurrent use.
type Locator struct {
	devices [][]located // ascending by DeviceOffset, without overlap
}

type located struct {
	Extent
	path string
}

// NewLocator returns the locator of a tree. Data that several files share count as those of the first path in the order of Walk.
func NewLocator(t *Tree) *Locator {
	all := make([][]located, len(t.Devices))
	seen := make(map[*Inode]bool)
	_ = t.Walk(func(path string, in *Inode) error { // its error is ours: none
		if !in.IsDir() && len(in.Extents) > 0 && !seen[in] {
			seen[in] = true
			for _, e := range in.Extents {
				if e.Device >= 0 && e.Device < len(all) {
					all[e.Device] = append(all[e.Device], located{e, path})
				}
			}
		}
		return nil
	})
	for i, list := range all {
		slices.SortStableFunc(list, func(a, b located) int { return cmp.Compare(a.DeviceOffset, b.DeviceOffset) })
		all[i] = withoutOverlap(list)
	}
	return &Locator{all}
}

// withoutOverlap cuts from each extent what the ones before it cover.
func withoutOverlap(list []located) []located {
	end, kept := int64(0), list[:0]
	for _, l := range list {
		if cut := end - l.DeviceOffset; cut > 0 {
			l.FileOffset, l.DeviceOffset, l.Length = l.FileOffset+cut, l.DeviceOffset+cut, l.Length-cut
		}
		if l.Length > 0 {
			kept = append(kept, l)
			end = l.DeviceOffset + l.Length
		}
	}
	return kept
}

// Locate returns the file ranges within n bytes at off of a device, in the order in which they lie there. Padding between
// files belongs to none.
func (l *Locator) Locate(device int, off, n int64) []Piece {
	if device < 0 || device >= len(l.devices) {
		return nil
	}
	list := l.devices[device]
	first := sort.Search(len(list), func(i int) bool { return list[i].DeviceOffset+list[i].Length > off })
	var pieces []Piece
	for _, e := range list[first:] {
		if e.DeviceOffset >= off+n {
			break
		}
		skip := max(off-e.DeviceOffset, 0)
		length := min(e.Length, off+n-e.DeviceOffset) - skip
		pieces = append(pieces, Piece{e.path, e.FileOffset + skip, length})
	}
	return pieces
}
