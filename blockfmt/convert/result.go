package convert

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// Result is a block image on local disk. Its fields must not be changed. Safe for concurrent use.
type Result struct {
	Artifact  *blockfmt.Artifact
	Manifest  []byte // of the block image, signed if there was a key
	Config    []byte
	Companion []byte // manifest of the companion
	Stats     Stats

	src      *Source
	cache    *layerCache
	dir      string // holds the merged metadata image
	lock     *os.File
	closing  sync.Once
	closed   error
	blobs    map[digest.Digest]content // all that the two manifests refer to
	progress func(Progress)
	workers  int
}

// content is a blob of a block image, in a file or in memory.
type content struct {
	layer int // it belongs to, or -1
	size  int64
	path  string
	data  []byte // if path is empty
}

func (c content) open() (io.ReadCloser, error) {
	if c.path == "" {
		return io.NopCloser(bytes.NewReader(c.data)), nil
	}
	return os.Open(c.path)
}

// Blob opens a blob of the block image or its companion. It returns ErrNotFound for other digests.
func (r *Result) Blob(d digest.Digest) (io.ReadCloser, error) {
	c, ok := r.blobs[d]
	if !ok {
		return nil, blockfmt.ErrNotFound
	}
	return c.open()
}

// Close removes what is not in the conversion cache. The Result cannot be pushed or written any more. Closing twice is no error.
func (r *Result) Close() error {
	r.closing.Do(func() { r.closed = errors.Join(removeAll(r.dir), r.lock.Close(), r.cache.close()) })
	return r.closed
}

func (r *Result) path(name string) string { return filepath.Join(r.dir, name) }

func (l *layer) path(name string) string { return filepath.Join(l.dir, name) }

// keep adds a blob that is in memory.
func (r *Result) keep(data []byte, mediaType string) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	r.blobs[desc.Digest] = content{layer: -1, size: desc.Size, data: data}
	return desc
}

func (r *Result) encode(path string, t *metadata.Tree, opts Options) (ocispec.Descriptor, error) {
	e, err := newEncoder(opts.Workers)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return e.writeMetadata(path, t)
}

func (s *Stats) add(l *layer, sourceSize int64) {
	s.Layers = append(s.Layers, LayerStats{
		DiffID: l.DiffID, Cached: l.cached, SourceSize: sourceSize, RawSize: l.RawSize, StoredSize: l.Blob.Size, Blocks: l.Blocks,
		StartupBlocks: l.StartupBlocks, Inodes: l.Inodes,
	})
	if !l.cached {
		s.Converted++
	}
	s.SourceSize += sourceSize
	s.RawSize += l.RawSize
	s.StoredSize += l.Blob.Size
	s.Blocks += l.Blocks
}

func countInodes(t *metadata.Tree) int {
	seen := map[*metadata.Inode]bool{}
	_ = t.Walk(func(_ string, in *metadata.Inode) error {
		seen[in] = true
		return nil
	})
	return len(seen)
}

// bare is a descriptor without annotations and platform.
func bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

func removeAll(dir string) error {
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}
