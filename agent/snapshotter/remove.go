package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// deadPrefix of directories that are being removed.
const deadPrefix = "rm-"

// Commit makes the active snapshot key a committed one called name. Its data stays where it is.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	labels, parent, err := optionsOf(opts)
	if err != nil {
		return err
	}
	snap, err := s.load(ctx, key)
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	// Walked before the transaction, because a layer may have a million files.
	usage, err := fs.DiskUsage(ctx, s.upper(snap.id))
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w: %w", key, err, errdefs.ErrFailedPrecondition)
	}
	var id string
	err = s.write(ctx, func(ctx context.Context) error {
		id, err = storage.CommitActive(ctx, key, name, snapshots.Usage(usage), snapshots.WithLabels(labels), snapshots.WithParent(parent))
		return err
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	s.release(id)
	return nil
}

// Remove removes a snapshot that no other one is based on: the record first, so that nothing can use it, then its data.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	var remote digest.Digest
	err := s.write(ctx, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		remote = digest.Digest(info.Labels[LabelRemote])
		id, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	s.release(id)
	if remote != "" {
		s.count(remote, -1)
		s.forgetUnused(ctx, remote)
		return nil
	}
	if err := os.RemoveAll(s.dir(id)); err != nil {
		s.cfg.Log.Warn("directory of a removed snapshot is left until the next cleanup", "dir", s.dir(id), "err", err)
	}
	return nil
}

// forgetUnused tells Images when there is no remote snapshot of a chain any more.
func (s *Snapshotter) forgetUnused(ctx context.Context, chainID digest.Digest) {
	f, ok := s.images.(Forgetter)
	if !ok || s.count(chainID, 0) > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer cancel()
	if err := f.Forget(ctx, chainID); err != nil {
		s.cfg.Log.Warn("block image is kept although its last snapshot was removed", "chain", chainID, "err", err)
	}
}

// Cleanup removes directories that belong to no snapshot. containerd calls it after each garbage collection.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	orphans, err := s.orphans(ctx)
	if err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	for _, dir := range orphans {
		if err := os.RemoveAll(dir); err != nil {
			s.cfg.Log.Warn("directory without a snapshot cannot be removed", "dir", dir, "err", err)
		}
	}
	return nil
}

// orphans lists directories that belong to no snapshot, after renaming them to what can never be an ID. The transaction is
// a writing one because creating a snapshot is another: none is half done meanwhile.
func (s *Snapshotter) orphans(ctx context.Context) (dirs []string, err error) {
	err = s.write(ctx, func(ctx context.Context) error {
		ids, err := snapshotIDs(ctx)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "snapshots"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, ok := ids[e.Name()]; ok {
				continue
			}
			dead := e.Name()
			if !strings.HasPrefix(dead, deadPrefix) {
				dead = deadPrefix + dead
				err := os.Rename(s.dir(e.Name()), s.dir(dead))
				if errors.Is(err, os.ErrNotExist) {
					continue // Remove was faster
				}
				if err != nil {
					return err
				}
			}
			dirs = append(dirs, s.dir(dead))
		}
		return nil
	})
	return dirs, err
}

// snapshotIDs maps IDs to names. A database in which nothing was ever created has none.
func snapshotIDs(ctx context.Context) (map[string]string, error) {
	ids, err := storage.IDMap(ctx)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return ids, err
}
