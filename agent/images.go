package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/xylem-project/xylem/agent/snapshotter"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/fuse/erofs"
)

// Images are the block images on this node and their mounts. It implements snapshotter.Images. Safe for concurrent use.
type Images struct {
	discovery   discovery
	resolve     func(ctx context.Context, ref string) (origin, digest.Digest, error)
	blobs       *blobs
	mountDir    string
	way         erofs.Way
	readAhead   int
	readTimeout time.Duration
	prefetch    *prefetcher
	unpacked    func(origin, digest.Digest)                               // an image has no block image
	await       func(ctx context.Context, source digest.Digest) (ok bool) // waits for the conversion of an image
	removed     func(image digest.Digest)                                 // a block image is no longer here
	log         *slog.Logger
	finds       singleflight.Group // by source digest

	mu     sync.Mutex
	images map[digest.Digest]*image    // by artifact digest
	mounts map[digest.Digest]*mount    // by chain ID; entries stay
	live   map[digest.Digest]bool      // chain IDs that containerd has snapshots of
	misses map[digest.Digest]time.Time // source manifests without a block image, and until when that is believed
}

// newImages returns Images without their discovery, resolve and prefetch.
func newImages(cfg Config, b *blobs, way erofs.Way) *Images {
	return &Images{
		blobs: b, mountDir: filepath.Join(cfg.State, "mounts"), way: way, readAhead: int(cfg.ReadAhead), readTimeout: cfg.ReadTimeout.Duration,
		unpacked: func(origin, digest.Digest) {}, await: func(context.Context, digest.Digest) bool { return false }, removed: func(digest.Digest) {}, log: cfg.Log,
		images: map[digest.Digest]*image{}, mounts: map[digest.Digest]*mount{}, live: map[digest.Digest]bool{}, misses: map[digest.Digest]time.Time{},
	}
}

// missTTL is how long the answer "no block image" is believed. Pulls ask once a layer.
const missTTL = 10 * time.Second

// load reads the images that are on disk. Damaged ones are removed: they can be fetched again.
func (s *Images) load() error {
	entries, err := os.ReadDir(s.discovery.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(s.discovery.dir, e.Name())
		im, err := openImage(dir)
		if err == nil {
			s.images[im.artifact.Digest] = im
			continue
		}
		if !strings.HasPrefix(e.Name(), ".tmp-") {
			s.log.Warn("damaged image removed, it is fetched again when needed", "dir", dir, "err", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// Resolve makes sure that the chain of layers can be mounted, finding the block image first if it is not here.
func (s *Images) Resolve(ctx context.Context, req snapshotter.Request) error {
	if s.hold(req.ChainID) {
		return nil
	}
	if req.Ref == "" {
		return fmt.Errorf("chain %s is of no known image: %w", req.ChainID, blockfmt.ErrNotFound)
	}
	o, source, err := s.source(ctx, req)
	if err != nil {
		return err
	}
	im, err := s.obtain(ctx, o, source)
	if err != nil {
		return err
	}
	if im.prefix(req.ChainID) == 0 {
		return fmt.Errorf("block image %s has no layers %s: %w", im.artifact.Digest, req.ChainID, blockfmt.ErrNotFound)
	}
	s.hold(req.ChainID)
	return nil
}

// holdAll notes the chains that containerd has snapshots of when the agent starts.
func (s *Images) holdAll(chains []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, chain := range chains {
		s.live[chain] = true
	}
}

// hold notes that containerd has a snapshot of the chain, so its image is kept. It reports whether the image is here.
func (s *Images) hold(chain digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	im, _ := s.lookup(chain)
	if im != nil {
		s.live[chain] = true
	}
	return im != nil
}

func (s *Images) source(ctx context.Context, req snapshotter.Request) (origin, digest.Digest, error) {
	o, source, err := s.resolve(ctx, req.Ref)
	if req.Manifest != "" {
		source = req.Manifest
	}
	return o, source, err
}

// obtain returns the block image of a source manifest, and waits for it if it is being made and the configuration allows that.
func (s *Images) obtain(ctx context.Context, o origin, source digest.Digest) (*image, error) {
	im, err := s.find(ctx, o, source)
	if errors.Is(err, blockfmt.ErrNotFound) && s.await(ctx, source) {
		im, err = s.find(ctx, o, source)
	}
	return im, err
}

// find returns the block image of a source manifest from this node, the registry or the cluster.
func (s *Images) find(ctx context.Context, o origin, source digest.Digest) (*image, error) {
	s.mu.Lock()
	for _, im := range s.images {
		if im.artifact.Source.Digest == source {
			s.mu.Unlock()
			return im, nil
		}
	}
	until := s.misses[source]
	s.mu.Unlock()
	if time.Now().Before(until) {
		return nil, fmt.Errorf("no block image of %s: %w", source, blockfmt.ErrNotFound)
	}
	v, err, _ := s.finds.Do(source.String(), func() (any, error) {
		start := time.Now()
		im, err := s.discovery.find(context.WithoutCancel(ctx), o, source)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.images[im.artifact.Digest] = im
			s.log.Info("block image found", "ref", o.Ref, "source", source, "image", im.artifact.Digest, "took", time.Since(start))
			s.prefetch.start(im)
		} else if errors.Is(err, blockfmt.ErrNotFound) {
			s.misses[source] = time.Now().Add(missTTL)
			s.unpacked(o, source)
		}
		return im, err
	})
	if err != nil {
		return nil, err
	}
	return v.(*image), nil
}

// add takes up a block image that was made on this node.
func (s *Images) add(ctx context.Context, o origin, source digest.Digest, manifest []byte) error {
	im, err := s.discovery.load(ctx, o, source, manifest)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[im.artifact.Digest] = im
	delete(s.misses, source)
	return nil
}

// has says whether the block image of a source is on this node.
func (s *Images) has(source digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, im := range s.images {
		if im.artifact.Source.Digest == source {
			return true
		}
	}
	return false
}

// usesLayout says whether an image's blocks are in a layout on this node.
func (s *Images) usesLayout(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, im := range s.images {
		if im.origin.Layout == dir {
			return true
		}
	}
	return false
}

// forgetMiss has a block image looked for again at once, because there is one now.
func (s *Images) forgetMiss(source digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.misses, source)
}

// lookup returns an image of which the chain is a prefix, and the number of layers; the caller holds s.mu. The image that
// the chain is the whole of comes first, because its metadata is at hand.
func (s *Images) lookup(chain digest.Digest) (found *image, layers int) {
	for _, im := range s.images {
		if n := im.prefix(chain); n > 0 && (found == nil || n == len(im.chains)) {
			found, layers = im, n
		}
	}
	return found, layers
}

// Mount returns the directory at which the chain's tree is mounted read-only, mounting it if it is not. Every call is
// given back by Unmount; the mount itself stays, with its page cache, until Forget.
func (s *Images) Mount(ctx context.Context, chain digest.Digest) (string, error) {
	m := s.mount(chain)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mounted == nil {
		s.mu.Lock()
		im, n := s.lookup(chain)
		s.mu.Unlock()
		if im == nil {
			return "", fmt.Errorf("mount %s: its block image is not on this node, pull the image again: %w", chain, blockfmt.ErrNotFound)
		}
		if err := m.mount(ctx, s, im, n); err != nil {
			return "", fmt.Errorf("mount the first %d layers of %s: %w", n, im.artifact.Digest, err)
		}
	}
	m.users.Add(1)
	return m.dir, nil
}

// Unmount gives one Mount back.
func (s *Images) Unmount(_ context.Context, chain digest.Digest) error {
	m := s.mount(chain)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users.Load() == 0 {
		return fmt.Errorf("unmount %s: it has no users", chain)
	}
	m.users.Add(-1)
	return nil
}

// Forget unmounts the chain and, when containerd has no snapshot of any chain of an image any more, removes the image.
func (s *Images) Forget(ctx context.Context, chain digest.Digest) error {
	m := s.mount(chain)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.users.Load(); n > 0 {
		return fmt.Errorf("forget %s: it has %d users", chain, n)
	}
	err := m.unmount(ctx, s)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, chain)
	_, e := s.removeUnused(func(im *image) bool { return im.prefix(chain) > 0 })
	return errors.Join(err, e)
}

// prune removes the images of which containerd has no snapshot and that nobody has mounted, and says which.
func (s *Images) prune(ctx context.Context) ([]digest.Digest, error) {
	err := s.unmountAll(ctx, func(chain digest.Digest, m *mount) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.live[chain] && m.users.Load() == 0
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	removed, e := s.removeUnused(func(*image) bool { return true })
	return removed, errors.Join(err, e)
}

// removeUnused removes those of the candidates that nothing needs; the caller holds s.mu.
func (s *Images) removeUnused(candidate func(*image) bool) (removed []digest.Digest, err error) {
	needed := func(c digest.Digest) bool {
		m := s.mounts[c]
		return s.live[c] || (m != nil && m.users.Load() > 0)
	}
	for id, im := range s.images {
		if !candidate(im) || slices.ContainsFunc(im.chains, needed) {
			continue
		}
		delete(s.images, id)
		s.log.Info("image removed", "ref", im.origin.Ref, "image", id)
		s.removed(id)
		removed, err = append(removed, id), errors.Join(err, os.RemoveAll(im.dir))
		if im.origin.Layout != "" && !isHeld(im.origin.Layout) {
			err = errors.Join(err, os.RemoveAll(im.origin.Layout))
		}
	}
	return removed, err
}

func (s *Images) mount(chain digest.Digest) *mount {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mounts[chain]
	if m == nil {
		m = &mount{dir: filepath.Join(s.mountDir, chain.Encoded()[:24])}
		s.mounts[chain] = m
	}
	return m
}

// close unmounts everything. Mounts that containers use are detached: what the kernel has cached of them stays readable.
func (s *Images) close(ctx context.Context) error {
	return s.unmountAll(ctx, func(digest.Digest, *mount) bool { return true })
}

// unmountAll unmounts the mounts for which which says so; it is called with the mount locked.
func (s *Images) unmountAll(ctx context.Context, which func(digest.Digest, *mount) bool) (err error) {
	s.mu.Lock()
	mounts := maps.Clone(s.mounts)
	s.mu.Unlock()
	for chain, m := range mounts {
		m.mu.Lock()
		if which(chain, m) {
			err = errors.Join(err, m.unmount(ctx, s))
		}
		m.mu.Unlock()
	}
	return err
}

// inUse says whether containers or mounts use an image.
func (s *Images) inUse(id digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	im := s.images[id]
	return im != nil && s.usersOf(im) > 0
}

// usersOf returns how many containers and mounts use an image; the caller holds s.mu.
func (s *Images) usersOf(im *image) (users int) {
	for _, chain := range im.chains {
		if m := s.mounts[chain]; m != nil {
			users += int(m.users.Load())
		}
	}
	return users
}

// list returns the images on this node, by reference.
func (s *Images) list() []ImageInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ImageInfo, 0, len(s.images))
	for id, im := range s.images {
		info := ImageInfo{Ref: im.origin.Ref, Image: id, Source: im.artifact.Source.Digest, Layers: len(im.chains), Recorded: im.hasRecord(), Users: s.usersOf(im)}
		for _, ix := range im.indexes {
			info.Blocks += ix.Len()
			for i := range ix.Len() {
				if s.blobs.cache.Has(ix.Ref(i)) {
					info.Held++
				}
			}
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b ImageInfo) int {
		return cmp.Or(strings.Compare(a.Ref, b.Ref), strings.Compare(string(a.Image), string(b.Image)))
	})
	return out
}
