// Package snapshotter is containerd's side of the agent: a snapshots service whose image layers are either block images,
// mounted lazily, or unpacked directories like those of the overlay snapshotter.
//
//	… EROFS mount --(Images.Mount)--> snapshotter --overlayfs mounts over gRPC--> containerd --> container
//
// A committed snapshot of a block image is called remote: it is a record with a chain ID and no data. Everything below it
// is in that chain's mounted tree, so a container on top of it has the layers [own directory] [normal snapshots above the
// topmost remote one] [one mounted tree], however many layers the image has.
//
// Below Config.Root lie metadata.db (bbolt, the truth about which snapshots exist) and snapshots/<id>/ for every snapshot
// that is not remote:
//
//	fs      what was written, or unpacked: overlayfs's upper directory, later a lower one
//	work    overlayfs's work directory, active snapshots only
//	lower   symbolic link to the mounted tree, if the snapshot is used on top of one. A link, because the lower
//	        directories of an overlay must fit into a page of mount options, which works by their common prefix, and must
//	        not contain a colon.
//
// # What survives a crash
//
// A snapshot is created in this order: temporary directory new-*, record (not committed yet), rename to <id>, commit of
// the record. A crash before the commit leaves a directory without a record, which Open and Cleanup remove. Commit of a
// snapshot, and removal, change the record only; directories of removed records are deleted after that. So a record
// without its directory means that somebody else deleted it: such snapshots can only be removed.
package snapshotter

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/singleflight"
)

// Images gives the snapshotter the trees of block images. All methods must be safe for concurrent use. They are called
// without any lock or transaction held, with a context that ends.
type Images interface {
	// Resolve returns nil if the tree of req.ChainID can be mounted, and blockfmt.ErrNotFound if there is no block image
	// that has it and that may be trusted: its layers are then unpacked.
	Resolve(ctx context.Context, req Request) error
	// Mount returns a directory with the chain's tree, read-only. Every successful call is given back by one Unmount.
	// blockfmt.ErrNotFound means that the image is gone; Resolve is asked then, and Mount again.
	Mount(ctx context.Context, chainID digest.Digest) (dir string, err error)
	Unmount(ctx context.Context, chainID digest.Digest) error
}

// Forgetter is what Images may implement as well: Forget is called when the last snapshot of a chain has been removed.
type Forgetter interface {
	Forget(ctx context.Context, chainID digest.Digest) error
}

// Request says for which layers a tree is wanted. Ref, Manifest and Labels come from whoever pulls, and with containerd
// before 2.2 from the image's own manifest too, so they are hints and grant nothing.
type Request struct {
	Ref      string        // the image's name as pulled; empty if the client does not tell
	Manifest digest.Digest // of the image's manifest; empty if the client does not tell
	ChainID  digest.Digest // of the layers, bottom up
	Labels   map[string]string
}

// Config of a Snapshotter.
type Config struct {
	// Root directory of the database and of writable and unpacked layers. Required. Its file system must be one that
	// overlayfs can write to.
	Root string
	// MountOptions of every overlay mount. Default: index=off, and userxattr within a user namespace.
	MountOptions []string
	// Strict fails the pull of an image whose block image cannot be looked up. Default: it is unpacked like any other.
	Strict bool
	// Timeout of one call of Images, and of all the calls together by which Open mounts again what is in use. Default 30 s.
	Timeout time.Duration
	// Log defaults to discarding.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	if !filepath.IsAbs(c.Root) {
		return fmt.Errorf("snapshotter: root %q is not an absolute path", c.Root)
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// databaseTimeout bounds the wait for the lock of a database that another process has open.
const databaseTimeout = 5 * time.Second

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner. Safe for concurrent use.
type Snapshotter struct {
	cfg    Config
	images Images
	store  *storage.MetaStore
	quiet  *log.Entry         // for the store, which logs the errors that it returns
	mounts singleflight.Group // of trees for snapshots that have none yet, by snapshot ID

	mu     sync.Mutex
	live   map[string]tree       // by ID of the active or view snapshot: the Mount it holds
	chains map[digest.Digest]int // remote snapshots by chain ID
	told   map[string]bool       // images of which the log says already that they have no block image
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Open opens or creates the snapshots below cfg.Root, removes what an interrupted operation left there, and mounts again
// the trees that existing snapshots use. Trees that cannot be mounted now are tried again when containerd asks for them.
func Open(ctx context.Context, cfg Config, images Images) (*Snapshotter, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Root, "snapshots"), 0o700); err != nil {
		return nil, err
	}
	if ok, err := fs.SupportsDType(cfg.Root); err != nil || !ok {
		return nil, fmt.Errorf("snapshotter: overlayfs cannot use the file system of %s, it does not tell file types in directories (xfs: ftype=1): %w", cfg.Root, err)
	}
	if cfg.MountOptions == nil {
		cfg.MountOptions = defaultMountOptions(cfg.Root, cfg.Log)
	}
	store, err := storage.NewMetaStore(filepath.Join(cfg.Root, "metadata.db"), func(o *bbolt.Options) error {
		o.Timeout = databaseTimeout
		return nil
	})
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{cfg: cfg, images: images, store: store, quiet: quiet(), live: map[string]tree{}, chains: map[digest.Digest]int{}, told: map[string]bool{}}
	if err := s.reconcile(ctx); err != nil {
		s.releaseAll()
		store.Close()
		return nil, fmt.Errorf("snapshotter: %w", err)
	}
	return s, nil
}

func quiet() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// read calls do in a transaction of the database that changes nothing, write in one that is committed if do succeeds.
// The context that do gets is for calls of package storage. Neither network nor mounts may be touched in do.
func (s *Snapshotter) read(ctx context.Context, do storage.TransactionCallback) error {
	return s.store.WithTransaction(log.WithLogger(ctx, s.quiet), false, do)
}

func (s *Snapshotter) write(ctx context.Context, do storage.TransactionCallback) error {
	return s.store.WithTransaction(log.WithLogger(ctx, s.quiet), true, do)
}

// Close closes the database. Trees stay mounted: containers go on using them.
func (s *Snapshotter) Close() error { return s.store.Close() }

// Chains returns the chain IDs of all remote snapshots, which are those that Images must keep.
func (s *Snapshotter) Chains() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]digest.Digest, 0, len(s.chains))
	for id := range s.chains {
		ids = append(ids, id)
	}
	return ids
}

// Stat returns the record of an active, view or committed snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes labels. That a snapshot is remote cannot be changed by it.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.write(ctx, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		if updated, err = storage.UpdateInfo(ctx, info, fieldpaths...); err != nil {
			return err
		}
		if updated.Labels[LabelRemote] == old.Labels[LabelRemote] {
			return nil
		}
		updated.Labels = withoutOurs(updated.Labels)
		if chain := old.Labels[LabelRemote]; chain != "" {
			updated.Labels[LabelRemote] = chain
		}
		updated, err = storage.UpdateInfo(ctx, updated, "labels")
		return err
	})
	return updated, err
}

// Usage returns what a snapshot itself takes of the disk: nothing, if it is remote or a view. The directory of an active
// one is walked.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.read(ctx, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil || info.Kind != snapshots.KindActive {
		return usage, err
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	return snapshots.Usage(du), err
}

// Walk calls do for every snapshot that matches the filters. No transaction is open meanwhile: do may be slow and may
// call any method.
func (s *Snapshotter) Walk(ctx context.Context, do snapshots.WalkFunc, filters ...string) error {
	var all []snapshots.Info
	err := s.read(ctx, func(ctx context.Context) error {
		all = all[:0]
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all = append(all, info)
			return nil
		}, filters...)
	})
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := do(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

func (s *Snapshotter) dir(id string) string   { return filepath.Join(s.cfg.Root, "snapshots", id) }
func (s *Snapshotter) upper(id string) string { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) work(id string) string  { return filepath.Join(s.dir(id), "work") }
func (s *Snapshotter) lower(id string) string { return filepath.Join(s.dir(id), "lower") }
