package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/fuse"
)

// blobs are the open blobs of all images on this node: each has one decompressed file, and one name in the FUSE mount,
// however many images hold it.
type blobs struct {
	cache  *cache.Cache
	server *fuse.Server
	pusher *pusher
	source func(im *image) (blockfmt.Source, error)

	mu   sync.Mutex
	open map[digest.Digest]*blob
	next uint64 // id of the next blob in the FUSE mount; never reused
}

// blob is one open blob. It is what the FUSE server reads from.
type blob struct {
	file     *cache.File
	index    *blockfmt.Index
	pusher   *pusher
	pushed   pushed
	ahead    *fetch.Readahead
	failures failures
	digest   digest.Digest
	recorder atomic.Pointer[recorder] // nil: nobody records
	id       uint64

	users  int  // under blobs.mu
	served bool // under blobs.mu: has a name in the FUSE mount
}

// Fill makes a range of the blob readable: a container's demand read.
func (b *blob) Fill(ctx context.Context, off, n int64) error {
	if r := b.recorder.Load(); r != nil {
		r.touch(b.digest, off, n)
	}
	if err := b.failures.again(off, n); err != nil {
		return err
	}
	start := time.Now()
	err := b.file.Fill(ctx, off, n)
	b.failures.note(ctx, off, n, start, err)
	if err == nil {
		b.push(off, n)
	}
	return err
}

// push has what is read of a blob in parts pushed in blocks, unless somebody records which parts those are.
func (b *blob) push(off, n int64) {
	if r := b.recorder.Load(); r != nil && r.pages {
		return
	}
	first, end := b.index.Find(off, n)
	for i := first; i < end; i++ {
		if ref := b.index.Ref(i); ref.RawLength > n && b.pushed.mark(i) {
			b.pusher.add(b.id, ref)
		}
	}
}

// Size returns the uncompressed size in bytes.
func (b *blob) Size() int64 { return b.file.Size() }

// File returns the file that Fill fills.
func (b *blob) File() *os.File { return b.file.File() }

// acquire opens the blob of a layer, or counts another user of it.
func (s *blobs) acquire(im *image, layer int) (*blob, error) {
	ix := im.indexes[layer]
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.open[ix.Blob()]; b != nil {
		b.users++
		return b, nil
	}
	src, err := s.source(im)
	if err != nil {
		return nil, err
	}
	b := &blob{digest: ix.Blob(), index: ix, pusher: s.pusher, pushed: make(pushed, ix.Len()), id: s.next, users: 1}
	startup := im.artifact.Layers[layer].StartupBlocks
	b.ahead = fetch.NewReadahead(readahead(ix, startup, func(ctx context.Context, block int) error { return b.file.Prefetch(ctx, block) }))
	touched := func(block int) {
		if block >= startup { // what comes before is prefetched in its own order
			b.ahead.Touched(block)
		}
	}
	if b.file, err = s.cache.OpenFile(ix, src, touched); err != nil {
		return nil, errors.Join(fmt.Errorf("open blob %s: %w", ix.Blob(), err), b.ahead.Close())
	}
	s.next++
	s.open[ix.Blob()] = b
	return b, nil
}

// readahead says how to read ahead in a blob. A registry takes longer to begin an answer than to send some blocks more, so that
// every first read of an unknown blob fetches what lies behind it too: files that are used together lie together. What a
// container reads of a blob whose startup blocks are known is known to be little.
func readahead(ix *blockfmt.Index, startup int, prefetch func(context.Context, int) error) fetch.ReadaheadConfig {
	cfg := fetch.ReadaheadConfig{Blocks: ix.Len(), Prefetch: prefetch}
	if startup == 0 {
		cfg.Trigger, cfg.Min, cfg.Max, cfg.Workers = 1, 8, 32, 32
	}
	return cfg
}

// device returns the path of the blob's uncompressed bytes for the kernel: the local file where it is complete, else (or
// if lazily is set) its name in the FUSE mount.
func (s *blobs) device(b *blob, lazily bool) (string, error) {
	if b.file.Complete() && !lazily {
		return b.file.Path(), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := b.digest.Encoded()
	if !b.served {
		if err := s.server.Add(b.id, name, b); err != nil {
			return "", err
		}
		b.served = true
	}
	return s.server.Path(name), nil
}

// release gives back one acquire; the last one closes the blob.
func (s *blobs) release(b *blob) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.users--; b.users > 0 {
		return nil
	}
	delete(s.open, b.digest)
	var err error
	if b.served {
		err = s.server.Remove(b.id)
	}
	return errors.Join(err, b.ahead.Close(), b.file.Close())
}
