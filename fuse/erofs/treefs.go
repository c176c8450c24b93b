package erofs

import (
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/fuse"
)

// forever is how long, in seconds, the kernel may remember names and attributes: they never change.
const forever = math.MaxInt32

// treeFS answers FUSE requests from a Tree. Immutable, and the same for the same metadata image: node ids number the tree
// depth first in the order of names, the root being 1.
type treeFS struct {
	gofuse.RawFileSystem // refuses what is not implemented here
	reader               *fuse.Reader
	blobs                []fuse.Blob
	nodes                []treeNode // by node id - 1
	ids                  map[*metadata.Inode]uint64
	blocks               uint64 // of all devices, for statfs
}

type treeNode struct {
	*metadata.Inode
	names  []string // of a directory, sorted
	parent uint64   // of a directory
	nlink  uint32
}

func newTreeFS(tree *metadata.Tree, blobs []fuse.Blob, reader *fuse.Reader) *treeFS {
	fs := &treeFS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), reader: reader, blobs: blobs, ids: map[*metadata.Inode]uint64{}}
	for _, d := range tree.Devices {
		fs.blocks += uint64(d.Size / 4096)
	}
	fs.number(tree.Root, gofuse.FUSE_ROOT_ID)
	return fs
}

// number gives in and everything below it their ids. metadata bounds the depth.
func (fs *treeFS) number(in *metadata.Inode, parent uint64) {
	if id := fs.ids[in]; id != 0 { // another name of a file
		fs.nodes[id-1].nlink++
		return
	}
	id := uint64(len(fs.nodes) + 1)
	fs.ids[in] = id
	fs.nodes = append(fs.nodes, treeNode{Inode: in, parent: parent, nlink: 1})
	if !in.IsDir() {
		return
	}
	names := slices.Sorted(maps.Keys(in.Entries))
	nlink := uint32(2)
	for _, name := range names {
		child := in.Entries[name]
		fs.number(child, id)
		if child.IsDir() {
			nlink++
		}
	}
	fs.nodes[id-1].names, fs.nodes[id-1].nlink = names, nlink
}

func (fs *treeFS) node(id uint64) *treeNode {
	if id == 0 || id > uint64(len(fs.nodes)) {
		return nil
	}
	return &fs.nodes[id-1]
}

func (fs *treeFS) String() string { return "xylem" }

func (fs *treeFS) attr(id uint64, out *gofuse.Attr) {
	n := fs.node(id)
	size := uint64(n.Size)
	switch n.Mode & metadata.TypeMask {
	case metadata.TypeSymlink:
		size = uint64(len(n.Target))
	case metadata.TypeDir:
		size = 4096
	}
	*out = gofuse.Attr{
		Ino: id, Mode: n.Mode, Nlink: n.nlink, Size: size, Blocks: (size + 4095) / 4096 * 8, Blksize: 4096,
		Owner: gofuse.Owner{Uid: n.UID, Gid: n.GID}, Rdev: n.Minor&0xff | n.Major<<8 | n.Minor&^0xff<<12,
		Mtime: uint64(n.Mtime), Mtimensec: n.MtimeNsec, // EROFS has one time
		Atime: uint64(n.Mtime), Atimensec: n.MtimeNsec,
		Ctime: uint64(n.Mtime), Ctimensec: n.MtimeNsec,
	}
}

func (fs *treeFS) entry(id uint64, out *gofuse.EntryOut) {
	out.NodeId, out.EntryValid, out.AttrValid = id, forever, forever
	fs.attr(id, &out.Attr)
}

func (fs *treeFS) Lookup(_ <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	n := fs.node(header.NodeId)
	if n == nil || !n.IsDir() {
		return gofuse.Status(unix.ESTALE)
	}
	child := n.Entries[name]
	if child == nil {
		out.NodeId, out.EntryValid = 0, forever // remember that it is not there
		return gofuse.OK
	}
	fs.entry(fs.ids[child], out)
	return gofuse.OK
}

func (fs *treeFS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if fs.node(in.NodeId) == nil {
		return gofuse.Status(unix.ESTALE)
	}
	out.AttrValid = forever
	fs.attr(in.NodeId, &out.Attr)
	return gofuse.OK
}

func (fs *treeFS) Readlink(_ <-chan struct{}, header *gofuse.InHeader) ([]byte, gofuse.Status) {
	n := fs.node(header.NodeId)
	if n == nil || n.Mode&metadata.TypeMask != metadata.TypeSymlink {
		return nil, gofuse.EINVAL
	}
	return []byte(n.Target), gofuse.OK
}

// Open and OpenDir tell the kernel not to ask again: it opens by itself then and keeps what it has cached.
func (fs *treeFS) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (fs *treeFS) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (fs *treeFS) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	n := fs.node(in.NodeId)
	if n == nil || n.Mode&metadata.TypeMask != metadata.TypeFile {
		return nil, gofuse.EINVAL
	}
	if in.Offset >= uint64(n.Size) {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	off := int64(in.Offset)
	buf = buf[:min(int64(len(buf)), n.Size-off)]
	caller := fuse.Caller{Cancel: cancel, Thread: in.Pid}
	first := sort.Search(len(n.Extents), func(i int) bool { return n.Extents[i].FileOffset+n.Extents[i].Length > off })
	if first < len(n.Extents) {
		e := n.Extents[first]
		if skip := off - e.FileOffset; skip >= 0 && int64(len(buf)) <= e.Length-skip { // the usual case: spliced
			blob := fs.blobs[e.Device]
			return fs.reader.Read(caller, blob.File().Name(), blob, e.DeviceOffset+skip, len(buf))
		}
	}
	if status := fs.assemble(caller, n.Extents[first:], off, buf); status != gofuse.OK {
		return nil, status
	}
	return gofuse.ReadResultData(buf), gofuse.OK
}

// assemble reads a range of a file that more than one extent, or a hole, covers. extents begin at or after off.
func (fs *treeFS) assemble(caller fuse.Caller, extents []metadata.Extent, off int64, buf []byte) gofuse.Status {
	clear(buf)
	end := off + int64(len(buf))
	for _, e := range extents {
		start, stop := max(off, e.FileOffset), min(end, e.FileOffset+e.Length)
		if start >= stop {
			break
		}
		blob := fs.blobs[e.Device]
		if status := fs.reader.ReadAt(caller, blob.File().Name(), blob, buf[start-off:stop-off], e.DeviceOffset+start-e.FileOffset); status != gofuse.OK {
			return status
		}
	}
	return gofuse.OK
}

// list gives add the entries of a directory from position pos, until it returns false. The entry at position i has the
// offset i+1: where to go on after it.
func (fs *treeFS) list(id, pos uint64, add func(gofuse.DirEntry, uint64) bool) gofuse.Status {
	n := fs.node(id)
	if n == nil || !n.IsDir() {
		return gofuse.Status(unix.ENOTDIR)
	}
	for ; pos < uint64(len(n.names))+2; pos++ {
		name, child := ".", id
		switch {
		case pos == 1:
			name, child = "..", n.parent
		case pos > 1:
			name = n.names[pos-2]
			child = fs.ids[n.Entries[name]]
		}
		if !add(gofuse.DirEntry{Name: name, Ino: child, Mode: fs.node(child).Mode, Off: pos + 1}, child) {
			break
		}
	}
	return gofuse.OK
}

func (fs *treeFS) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return fs.list(in.NodeId, in.Offset, func(e gofuse.DirEntry, _ uint64) bool { return out.AddDirEntry(e) })
}

func (fs *treeFS) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return fs.list(in.NodeId, in.Offset, func(e gofuse.DirEntry, id uint64) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && e.Off > 2 { // the kernel does not look at "." and ".."
			fs.entry(id, entry)
		}
		return entry != nil
	})
}

func (fs *treeFS) GetXAttr(_ <-chan struct{}, header *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	n := fs.node(header.NodeId)
	if n == nil {
		return 0, gofuse.Status(unix.ESTALE)
	}
	value, ok := n.Xattrs[name]
	if !ok {
		return 0, gofuse.ENOATTR
	}
	return copyOut(dest, value)
}

func (fs *treeFS) ListXAttr(_ <-chan struct{}, header *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	n := fs.node(header.NodeId)
	if n == nil {
		return 0, gofuse.Status(unix.ESTALE)
	}
	var list strings.Builder
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		if header.Uid != 0 && strings.HasPrefix(name, "trusted.") { // as the kernel's EROFS does
			continue
		}
		list.WriteString(name)
		list.WriteByte(0)
	}
	return copyOut(dest, list.String())
}

func copyOut(dest []byte, value string) (uint32, gofuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}

func (fs *treeFS) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	*out = gofuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255, Files: uint64(len(fs.nodes)), Blocks: fs.blocks}
	return gofuse.OK
}
