package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Prepare creates an active snapshot, or, if it is for a layer whose tree Images can mount, a remote snapshot: then it
// returns ErrAlreadyExists, by which containerd knows that there is nothing to download and unpack.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, _, err := optionsOf(opts)
	if err != nil {
		return nil, err
	}
	if target := labels[snapshots.LabelSnapshotRef]; target != "" {
		if err := s.prepareRemote(ctx, key, parent, target, labels); err != nil {
			return nil, err
		}
		// These come from the manifest of an image, which has no say in who owns its files on the host.
		delete(labels, snapshots.LabelSnapshotUIDMapping)
		delete(labels, snapshots.LabelSnapshotGIDMapping)
	}
	if parent == "" && labels[snapshots.LabelSnapshotRef] == "" && isUnpackKey(key) {
		s.cfg.Log.Info("the client unpacks an image without asking for its block image, as `ctr image pull` of containerd 1.x does", "snapshot", key)
	}
	return s.create(ctx, snapshots.KindActive, key, parent, labels)
}

// isUnpackKey recognizes the keys under which containerd unpacks layers: "[namespace/number/]extract-<unique> <chain ID>".
func isUnpackKey(key string) bool {
	return strings.HasPrefix(key[strings.LastIndexByte(key, '/')+1:], snapshots.UnpackKeyPrefix+"-")
}

// View creates a snapshot through which a committed one can be read.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, _, err := optionsOf(opts)
	if err != nil {
		return nil, err
	}
	return s.create(ctx, snapshots.KindView, key, parent, labels)
}

// create makes an active or view snapshot. The order of its steps is in the package's comment.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) (_ []mount.Mount, err error) {
	snap := snapshot{key: key, kind: kind, labels: labels}
	err = s.read(ctx, func(ctx context.Context) error {
		snap.chain, err = readChain(ctx, parent)
		return err
	})
	if err == nil {
		snap.ids, err = parseIDMap(labels)
	}
	if err == nil {
		err = s.checkUsable(snap)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	t, err := s.mountTree(ctx, snap.chain.remote)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	snap.tree = t
	if err := s.record(ctx, &snap, parent); err != nil {
		return nil, s.giveBack(t, err)
	}
	if err := s.adopt(ctx, key, snap.id, t); err != nil {
		return nil, err
	}
	return s.mountsOf(snap), nil
}

// record writes the record and the directory of a new snapshot and sets snap.id. If the record cannot be committed, the
// directory is an orphan: it must not be removed here, because its ID may be another snapshot's by then.
func (s *Snapshotter) record(ctx context.Context, snap *snapshot, parent string) (err error) {
	uid, gid, err := s.owner(snap)
	if err != nil {
		return err
	}
	var tmp string
	defer func() {
		if tmp != "" {
			os.RemoveAll(tmp)
		}
	}()
	return s.write(ctx, func(ctx context.Context) error {
		created, err := storage.CreateSnapshot(ctx, snap.kind, snap.key, parent, snapshots.WithLabels(snap.labels))
		if err != nil {
			return fmt.Errorf("create snapshot %q: %w", snap.key, err)
		}
		if len(created.ParentIDs) > 0 && created.ParentIDs[0] != snap.chain.parentID {
			return fmt.Errorf("parent %q of snapshot %q was replaced meanwhile: %w", parent, snap.key, errdefs.ErrUnavailable)
		}
		if tmp, err = s.makeDir(snap.kind, snap.tree.dir); err != nil {
			return err
		}
		if err := os.Lchown(filepath.Join(tmp, "fs"), uid, gid); err != nil {
			return err
		}
		// Something is here already if a transaction was rolled back after this point: its ID is given out again.
		if err := os.RemoveAll(s.dir(created.ID)); err != nil {
			return err
		}
		if err := os.Rename(tmp, s.dir(created.ID)); err != nil {
			return err
		}
		snap.id, tmp = created.ID, ""
		return nil
	})
}

// makeDir makes a snapshot's directory under a temporary name.
func (s *Snapshotter) makeDir(kind snapshots.Kind, tree string) (_ string, err error) {
	tmp, err := os.MkdirTemp(filepath.Join(s.cfg.Root, "snapshots"), "new-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	// The upper directory gives the root of a container its mode, whatever the umask is.
	if err := os.Mkdir(filepath.Join(tmp, "fs"), 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(filepath.Join(tmp, "fs"), 0o755); err != nil {
		return "", err
	}
	if kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(tmp, "work"), 0o711); err != nil {
			return "", err
		}
	}
	if tree != "" {
		if err := os.Symlink(tree, filepath.Join(tmp, "lower")); err != nil {
			return "", err
		}
	}
	return tmp, nil
}

// owner returns who owns the root directory of a new snapshot: root as the snapshot's user namespace maps it, or else
// the owner of the parent's root directory.
func (s *Snapshotter) owner(snap *snapshot) (uid, gid int, err error) {
	if snap.ids.set {
		return snap.ids.rootUID, snap.ids.rootGID, nil
	}
	top := snap.tree.dir
	if len(snap.chain.normal) > 0 {
		top = s.upper(snap.chain.normal[0])
	}
	if top == "" {
		return os.Getuid(), os.Getgid(), nil
	}
	st, err := os.Stat(top)
	if err != nil {
		return 0, 0, fmt.Errorf("parent of snapshot %q: %w: %w", snap.key, err, errdefs.ErrFailedPrecondition)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return int(sys.Uid), int(sys.Gid), nil
}
