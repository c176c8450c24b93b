package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
)

// snapshot is an active or view snapshot with all that its mounts are made of.
type snapshot struct {
	id, key string
	kind    snapshots.Kind
	labels  map[string]string
	ids     idMap
	chain   chain
	tree    tree // of chain.remote
}

// defaultMountOptions are those of containerd's overlay snapshotter.
func defaultMountOptions(root string, log *slog.Logger) (options []string) {
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		options = append(options, "index=off")
	}
	user, err := overlayutils.NeedsUserXAttr(root)
	if err != nil {
		log.Warn("cannot find out whether overlayfs needs userxattr here", "root", root, "assumed", user, "err", err)
	}
	if user {
		options = append(options, "userxattr")
	}
	return options
}

// Mounts returns the mounts of an active or view snapshot. If its tree is not mounted, because the agent could not mount
// it when it started, it is mounted now.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	snap, err := s.load(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	if err := s.checkUsable(snap); err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	if snap.tree, err = s.ensureTree(ctx, snap); err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	return s.mountsOf(snap), nil
}

// load reads the record of an active or view snapshot.
func (s *Snapshotter) load(ctx context.Context, key string) (snap snapshot, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		id, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		if info.Kind == snapshots.KindCommitted {
			return fmt.Errorf("it is committed, only active snapshots and views have mounts: %w", errdefs.ErrFailedPrecondition)
		}
		snap = snapshot{id: id, key: key, kind: info.Kind, labels: info.Labels}
		if snap.ids, err = parseIDMap(info.Labels); err != nil {
			return err
		}
		snap.chain, err = readChain(ctx, info.Parent)
		return err
	})
	return snap, err
}

// mountsOf returns one mount: a bind mount if there is one directory only, else an overlay.
func (s *Snapshotter) mountsOf(snap snapshot) []mount.Mount {
	var options []string
	if snap.ids.set {
		options = append(options, "uidmap="+snap.ids.uids, "gidmap="+snap.ids.gids)
	}
	var lower []string
	for _, id := range snap.chain.normal {
		lower = append(lower, s.upper(id))
	}
	if snap.tree.dir != "" {
		lower = append(lower, s.lower(snap.id))
	}
	switch {
	case len(lower) == 0 && snap.kind == snapshots.KindActive:
		return bind(s.upper(snap.id), append(options, "rw"))
	case len(lower) == 0:
		return bind(s.upper(snap.id), append(options, "ro"))
	case snap.kind == snapshots.KindActive:
		options = append(options, "workdir="+s.work(snap.id), "upperdir="+s.upper(snap.id))
	case len(lower) == 1 && snap.tree.dir != "":
		return bind(snap.tree.dir, append(options, "ro"))
	case len(lower) == 1:
		return bind(lower[0], append(options, "ro"))
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	options = append(options, s.cfg.MountOptions...)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

func bind(source string, options []string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: append(options, "rbind")}}
}

// checkUsable finds what the kernel would explain badly or not at all: directories that somebody deleted, and ID mappings
// that containerd would apply to everything below the snapshots' directory, where trees of block images are links only.
func (s *Snapshotter) checkUsable(snap snapshot) error {
	if snap.ids.set && snap.chain.remote.ChainID != "" {
		return fmt.Errorf("block images cannot be ID-mapped by the snapshotter; without the capability remap-ids clients change the owners themselves: %w", errdefs.ErrNotImplemented)
	}
	ids := snap.chain.normal
	if snap.id != "" {
		ids = append([]string{snap.id}, ids...)
	}
	for _, id := range ids {
		if _, err := os.Lstat(s.upper(id)); err != nil {
			return fmt.Errorf("data of it or of a parent was deleted, remove it and pull the image again: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
