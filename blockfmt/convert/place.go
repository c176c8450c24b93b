package convert

import (
	"cmp"
	"io"
	"slices"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// startupGap is the distance in bytes below which two startup ranges are laid out as one: closing small gaps keeps files
// in few extents and costs a fraction of a block.
const startupGap = 16 << 10

// interval is a range of bytes of the spool, page-aligned.
type interval struct{ start, end int64 }

// placement says where in the blob the spool's bytes go.
type placement struct {
	parts   []interval // of the spool, in the order of the blob; together all of it
	startup int64      // bytes at the start of the blob that hold the profile's ranges
	moved   []move     // the parts by their place in the spool
}

type move struct{ from, to, length int64 } // spool offset, blob offset

// place lays out what the profile lists first, in its order, then the rest as it is in the spool. Paths that the layer does
// not have and ranges beyond a file's end are ignored: a profile may stem from another version of the image.
func place(t *metadata.Tree, profile blockfmt.Profile, size int64) *placement {
	p := &placement{}
	var taken intervals
	for _, r := range profile {
		in := t.Lookup(r.Path)
		if in == nil {
			continue
		}
		for _, e := range in.Extents {
			start := max(r.Offset, e.FileOffset)
			end := min(r.Offset+min(r.Length, in.Size), e.FileOffset+e.Length)
			if start >= end {
				continue
			}
			want := interval{pageDown(start - e.FileOffset + e.DeviceOffset), pageUp(end - e.FileOffset + e.DeviceOffset)}
			file := interval{e.DeviceOffset, pageUp(e.DeviceOffset + e.Length)}
			p.parts = append(p.parts, taken.add(want, file)...)
		}
	}
	for _, part := range p.parts {
		p.startup += part.end - part.start
	}
	p.parts = append(p.parts, taken.add(interval{0, size}, interval{0, size})...)
	to := int64(0)
	for _, part := range p.parts {
		p.moved = append(p.moved, move{part.start, to, part.end - part.start})
		to += part.end - part.start
	}
	slices.SortFunc(p.moved, func(a, b move) int { return cmp.Compare(a.from, b.from) })
	return p
}

func pageDown(n int64) int64 { return n &^ (blockfmt.PageSize - 1) }
func pageUp(n int64) int64   { return pageDown(n + blockfmt.PageSize - 1) }

// intervals is a set of bytes, as disjoint ascending intervals.
type intervals []interval

// add adds want to the set and returns what of it was not in the set before. Gaps smaller than startupGap between want and
// its neighbours in the set, within file, are closed.
func (s *intervals) add(want, file interval) []interval {
	at := s.search(want.start)
	if at > 0 {
		if before := (*s)[at-1].end; before >= file.start && want.start-before < startupGap {
			want.start, at = before, at-1
		}
	}
	if next := s.search(want.end); next < len(*s) {
		if after := (*s)[next].start; after > want.end && after < file.end && after-want.end < startupGap {
			want.end = after
		}
	}
	var added []interval
	end, pos, union := at, want.start, want
	for ; end < len(*s) && (*s)[end].start <= want.end; end++ {
		have := (*s)[end]
		if pos < have.start {
			added = append(added, interval{pos, have.start})
		}
		pos = max(pos, have.end)
		union = interval{min(union.start, have.start), max(union.end, have.end)}
	}
	if pos < want.end {
		added = append(added, interval{pos, want.end})
	}
	*s = slices.Replace(*s, at, end, union)
	return added
}

// search returns the first interval that ends at or after pos.
func (s *intervals) search(pos int64) int {
	at, _ := slices.BinarySearchFunc(*s, pos, func(i interval, pos int64) int { return cmp.Compare(i.end, pos) })
	return at
}

// apply rewrites the extents of a tree from the spool to the blob.
func (p *placement) apply(t *metadata.Tree) error {
	return eachInode(t, func(in *metadata.Inode) { in.Extents = p.translate(in.Extents) })
}

func (p *placement) translate(extents []metadata.Extent) []metadata.Extent {
	var out []metadata.Extent
	for _, e := range extents {
		i, ok := slices.BinarySearchFunc(p.moved, e.DeviceOffset, func(m move, off int64) int { return cmp.Compare(m.from, off) })
		if !ok {
			i--
		}
		for ; e.Length > 0; i++ {
			m := p.moved[i]
			skip := e.DeviceOffset - m.from
			n := min(e.Length, m.length-skip)
			out = appendExtent(out, metadata.Extent{FileOffset: e.FileOffset, Length: n, DeviceOffset: m.to + skip})
			e.FileOffset, e.DeviceOffset, e.Length = e.FileOffset+n, e.DeviceOffset+n, e.Length-n
		}
	}
	return out
}

// reader reads the spool in the order of the blob.
func (p *placement) reader(s *spool) io.Reader {
	readers := make([]io.Reader, len(p.parts))
	for i, part := range p.parts {
		readers[i] = s.part(part.start, part.end)
	}
	return io.MultiReader(readers...)
}
