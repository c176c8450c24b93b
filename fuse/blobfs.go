package fuse

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// forever is how long, in seconds, the kernel may remember names and attributes: they never change.
const forever = math.MaxInt32

// blobFS is the file system of a Server.
type blobFS struct {
	gofuse.RawFileSystem // refuses what is not implemented here
	reader               *Reader
	server               *gofuse.Server // set by Init, before any request

	mu    sync.RWMutex
	nodes map[uint64]*file // guarded by mu
	names map[string]*file // guarded by mu
}

// file is one blob. Immutable but for reads, which is added to under blobFS.mu.
type file struct {
	node   uint64
	name   string
	blob   Blob
	ctx    context.Context // ends when the file is removed
	cancel context.CancelFunc
	reads  sync.WaitGroup
}

func (fs *blobFS) add(f *file) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.nodes[f.node] != nil || fs.names[f.name] != nil {
		f.cancel()
		return fmt.Errorf("fuse: blob %d or name %s is served already", f.node-firstBlob, f.name)
	}
	fs.nodes[f.node], fs.names[f.name] = f, f
	return nil
}

func (fs *blobFS) remove(node uint64) *file {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.nodes[node]
	if f != nil {
		delete(fs.nodes, node)
		delete(fs.names, f.name)
	}
	return f
}

// startRead returns the file, which will not be removed before its reads.Done is called.
func (fs *blobFS) startRead(node uint64) *file {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	f := fs.nodes[node]
	if f != nil {
		f.reads.Add(1)
	}
	return f
}

func (fs *blobFS) byNode(node uint64) *file {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return fs.nodes[node]
}

func (fs *blobFS) Init(server *gofuse.Server) { fs.server = server }

func (fs *blobFS) String() string { return fsType }

func (fs *blobFS) Lookup(_ <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	fs.mu.RLock()
	f := fs.names[name]
	fs.mu.RUnlock()
	if f == nil || header.NodeId != rootNode {
		return gofuse.ENOENT
	}
	out.NodeId, out.EntryValid, out.AttrValid = f.node, forever, forever
	f.attr(&out.Attr)
	return gofuse.OK
}

func (f *file) attr(out *gofuse.Attr) {
	size := uint64(f.blob.Size())
	*out = gofuse.Attr{Ino: f.node, Mode: unix.S_IFREG | 0o400, Nlink: 1, Size: size, Blocks: (size + 511) / 512, Blksize: 4096}
}

func (fs *blobFS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if in.NodeId == rootNode {
		out.Attr = gofuse.Attr{Ino: rootNode, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: 4096}
	} else if f := fs.byNode(in.NodeId); f != nil {
		f.attr(&out.Attr)
	} else {
		return gofuse.Status(unix.ESTALE)
	}
	out.AttrValid = forever
	return gofuse.OK
}

func (fs *blobFS) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if fs.byNode(in.NodeId) == nil {
		return gofuse.Status(unix.ESTALE)
	}
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return gofuse.EROFS
	}
	// KEEP_CACHE is for those who read through the page cache (loop devices, kernels without EROFS's directio).
	out.Fh, out.OpenFlags = in.NodeId, gofuse.FOPEN_KEEP_CACHE|gofuse.FOPEN_NOFLUSH
	return gofuse.OK
}

func (fs *blobFS) Read(cancel <-chan struct{}, in *gofuse.ReadIn, _ []byte) (gofuse.ReadResult, gofuse.Status) {
	f := fs.startRead(in.NodeId)
	if f == nil {
		return nil, gofuse.EIO
	}
	defer f.reads.Done()
	if in.Offset > math.MaxInt64 {
		return nil, gofuse.EINVAL
	}
	return fs.reader.Read(Caller{Ctx: f.ctx, Cancel: cancel, Thread: in.Pid}, f.name, f.blob, int64(in.Offset), int(in.Size))
}

func (fs *blobFS) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	// An entry's offset is its node id + 1, so that listing goes on at the same place whatever was added or removed.
	entries := []gofuse.DirEntry{{Name: ".", Ino: rootNode, Mode: unix.S_IFDIR, Off: 1}, {Name: "..", Ino: rootNode, Mode: unix.S_IFDIR, Off: 2}}
	fs.mu.RLock()
	for _, node := range slices.Sorted(maps.Keys(fs.nodes)) {
		entries = append(entries, gofuse.DirEntry{Name: fs.nodes[node].name, Ino: node, Mode: unix.S_IFREG, Off: node + 1})
	}
	fs.mu.RUnlock()
	for _, e := range entries {
		if e.Off > in.Offset && !out.AddDirEntry(e) {
			break
		}
	}
	return gofuse.OK
}

func (fs *blobFS) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.OK
}

func (fs *blobFS) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	out.Bsize, out.Frsize, out.NameLen, out.Files = 4096, 4096, 255, uint64(len(fs.nodes))
	for _, f := range fs.nodes {
		out.Blocks += uint64(f.blob.Size()+4095) / 4096
	}
	return gofuse.OK
}

func (fs *blobFS) Access(<-chan struct{}, *gofuse.AccessIn) gofuse.Status { return gofuse.OK }
