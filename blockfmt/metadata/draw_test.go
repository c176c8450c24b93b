package metadata

import (
	"strings"

	"pgregory.net/rapid"
)

// drawTree draws a random tree. With layer, it may hold what only the trees of single layers do: whiteouts and opaque directories.
func drawTree(t *rapid.T, label string, layer bool) *Tree {
	pages := rapid.SliceOfN(rapid.Int64Range(0, 40), 0, 3).Draw(t, label+" devices")
	d := &drawing{T: t, devices: devices(pages...), layer: layer}
	return &Tree{Root: d.directory(3), Devices: d.devices}
}

type drawing struct {
	*rapid.T
	devices []Device
	files   []*Inode // what may get further names
	layer   bool
}

func (d *drawing) int(label string, lowest, highest int64) int64 {
	return rapid.Int64Range(lowest, highest).Draw(d.T, label)
}

func (d *drawing) name() string {
	return rapid.OneOf(
		rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}),
		rapid.SampledFrom([]string{"-", "!", "..x", ".a", "\xff\xfe", "\x01", strings.Repeat("n", 255), strings.Repeat("\xf0", 254)}),
		rapid.StringMatching(`[a-c -~]{1,40}`).Filter(func(s string) bool { return checkName(s) == nil }),
	).Draw(d.T, "name")
}

func (d *drawing) directory(depth int) *Inode {
	in := d.attributes(&Inode{Mode: TypeDir, Entries: make(map[string]*Inode)})
	most := int64(6)
	if d.int("large directory", 0, 9) == 0 {
		most = 60
	}
	for range d.int("entries", 0, most) {
		in.Entries[d.name()] = d.inode(depth)
	}
	if d.layer && d.int("opaque", 0, 5) == 0 {
		in.Xattrs[xattrOpaque] = "y"
	}
	return in
}

func (d *drawing) inode(depth int) *Inode {
	switch kind := d.int("kind", 0, 9); {
	case kind <= 3 && depth > 0:
		return d.directory(depth - 1)
	case kind == 4 && len(d.files) > 0:
		return rapid.SampledFrom(d.files).Draw(d.T, "link")
	case kind == 5 && d.layer:
		return &Inode{Mode: TypeChar}
	}
	in := d.attributes(&Inode{Mode: rapid.SampledFrom([]uint32{TypeFile, TypeFile, TypeFile, TypeSymlink, TypeChar, TypeBlock, TypeFifo, TypeSocket}).Draw(d.T, "type")})
	switch in.Mode & TypeMask {
	case TypeFile:
		d.content(in)
	case TypeSymlink:
		in.Target = rapid.StringMatching(`[a-f./]{1,60}`).Draw(d.T, "target")
	case TypeChar, TypeBlock:
		in.Major, in.Minor = uint32(d.int("major", 1, 0xfff)), uint32(d.int("minor", 0, 0xfffff))
	}
	d.files = append(d.files, in)
	return in
}

func (d *drawing) attributes(in *Inode) *Inode {
	in.Mode |= uint32(d.int("permissions", 0, 0o7777))
	if in.Mode&TypeMask == TypeSymlink {
		in.Mode |= 0o777
	}
	in.UID, in.GID = uint32(d.int("uid", 0, 1<<32-2)), uint32(d.int("gid", 0, 1<<32-2))
	in.Mtime, in.MtimeNsec = d.int("mtime", -1<<31, 1<<33), uint32(d.int("nsec", 0, 1e9-1))
	in.Xattrs = make(map[string]string)
	for range d.int("xattrs", -3, 3) {
		name := rapid.SampledFrom([]string{"trusted.", "security.test"}).Draw(d.T, "prefix") + rapid.StringMatching(`[a-z.]{1,9}`).Draw(d.T, "xattr")
		size := rapid.SampledFrom([]int64{40, 40, 40, 5000}).Draw(d.T, "most")
		in.Xattrs[name] = strings.Repeat("v", int(d.int("value", 0, size)))
	}
	return in
}

func (d *drawing) content(in *Inode) {
	for range d.int("extents", 0, 5) {
		e := Extent{FileOffset: roundUp(in.Size, blockSize) + d.int("hole", 0, 4)*blockSize}
		if len(d.devices) > 0 {
			e.Device = int(d.int("device", 0, int64(len(d.devices)-1)))
			pages := d.devices[e.Device].Size / blockSize
			if first := d.int("first page", 0, pages); first < pages {
				e.DeviceOffset = first * blockSize
				e.Length = d.int("pages", 1, pages-first) * blockSize
				in.Extents = append(in.Extents, e)
			}
		}
		in.Size = e.FileOffset + e.Length
	}
	if n := len(in.Extents); n > 0 && in.Extents[n-1].FileOffset+in.Extents[n-1].Length == in.Size {
		cut := d.int("cut", 0, blockSize-1)
		in.Size, in.Extents[n-1].Length = in.Size-cut, in.Extents[n-1].Length-cut
		return
	}
	in.Size += d.int("hole at the end", 0, 3*blockSize)
}
