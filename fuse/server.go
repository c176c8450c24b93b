package fuse

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

const (
	rootNode  = gofuse.FUSE_ROOT_ID // 1
	firstBlob = 2                   // node id of blob 0
	// maxID keeps directory offsets, which the kernel takes as signed, positive.
	maxID = 1 << 62
)

// Server serves blobs as read-only files in one directory. Safe for concurrent use.
type Server struct {
	conn   *Conn
	reader *Reader
	fs     *blobFS
	closed func() error
}

// Mount mounts an empty directory of blobs on dir, which must exist, and serves it until Close.
func Mount(dir string, cfg Config) (*Server, error) {
	s := &Server{reader: NewReader(cfg)}
	s.fs = &blobFS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), reader: s.reader, nodes: map[uint64]*file{}, names: map[string]*file{}}
	var err error
	if s.conn, err = Attach(dir, s.fs, Traits{}, cfg); err != nil {
		s.reader.Stop()
		return nil, err
	}
	s.closed = sync.OnceValue(s.close)
	return s, nil
}

// Add makes b the file of this name. id becomes part of the kernel's view of the file: it must not be used for another blob
// while the server or one that takes over from it lives, and the same blob must have the same id there. b stays in use
// until Remove or Close returns.
func (s *Server) Add(id uint64, name string, b Blob) error {
	if id > maxID || name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("fuse: blob %d cannot be named %.80q", id, name)
	}
	ctx, cancel := context.WithCancel(s.reader.ctx)
	return s.fs.add(&file{node: id + firstBlob, name: name, blob: b, ctx: ctx, cancel: cancel})
}

// Remove takes the blob's file away and waits for reads that are under way; they fail, as do later ones by those who have
// the file open. Removing a blob that is not there does nothing.
func (s *Server) Remove(id uint64) error {
	f := s.fs.remove(id + firstBlob)
	if f == nil {
		return nil
	}
	f.cancel()
	f.reads.Wait()
	s.reader.failures.forget(f.name)
	// What the kernel remembers of the name would hide another blob of that name for as long as it is remembered.
	if status := s.fs.server.EntryNotify(rootNode, f.name); status != gofuse.OK && status != gofuse.ENOENT {
		return fmt.Errorf("fuse: forget name %s: %v", f.name, status)
	}
	return nil
}

// maxPush bounds the bytes of one Push, and so the memory that it takes.
const maxPush = 1 << 20

var pushBuffers = sync.Pool{New: func() any { return new([maxPush]byte) }}

// Push puts bytes [off, off+n) of a blob, which must be valid in its File, into the kernel's page cache: reading them needs no
// request then. It may be refused, by a kernel that does not know the file yet for example, which changes nothing for
// readers. Not to be called by Fill: the kernel may wait for reads of the same bytes.
func (s *Server) Push(id uint64, off, n int64) error {
	f := s.fs.startRead(id + firstBlob)
	if f == nil {
		return nil
	}
	defer f.reads.Done()
	buf := pushBuffers.Get().(*[maxPush]byte)
	defer pushBuffers.Put(buf)
	data := buf[:clamp(f.blob.Size(), off, int(min(n, maxPush)))]
	if len(data) == 0 {
		return nil
	}
	if _, err := f.blob.File().ReadAt(data, off); err != nil {
		return fmt.Errorf("fuse: push %d bytes at %d of %s: %w", len(data), off, f.name, err)
	}
	if status := s.fs.server.InodeNotifyStoreCache(f.node, off, data); status != gofuse.OK {
		return fmt.Errorf("fuse: push %d bytes at %d of %s: %v", len(data), off, f.name, status)
	}
	return nil
}

// Path returns the path of the file with this name, for use by the kernel and by other processes: see the package comment.
func (s *Server) Path(name string) string { return filepath.Join(s.conn.dir, name) }

// Close makes reads fail, unmounts, lazily if files are still open, and waits for everything that Mount started and for
// all calls of Fill, these for at most the ReadTimeout. Calling it again returns the same.
func (s *Server) Close() error { return s.closed() }

func (s *Server) close() error {
	s.reader.Stop() // first, so that requests under way are answered
	if err := s.conn.Close(); err != nil {
		return err
	}
	return s.reader.Close()
}
