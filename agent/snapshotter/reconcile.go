package snapshotter

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// mountsAtOnce is how many trees Open mounts at the same time.
const mountsAtOnce = 8

// reconcile makes the directories and mounts agree with the database, which is right wherever they differ.
func (s *Snapshotter) reconcile(ctx context.Context) error {
	if err := s.Cleanup(ctx); err != nil {
		return err
	}
	var inUse []string
	err := s.read(ctx, func(ctx context.Context) error {
		inUse = nil
		ids, err := snapshotIDs(ctx)
		if err != nil {
			return err
		}
		for id, name := range ids {
			_, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return err
			}
			if chainID := info.Labels[LabelRemote]; chainID != "" {
				s.chains[digest.Digest(chainID)]++
				continue
			}
			s.repair(id, info)
			if info.Kind != snapshots.KindCommitted {
				inUse = append(inUse, name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.remount(ctx, inUse)
}

// repair deals with a deleted directory. A view has nothing in it; the data of other snapshots is lost, which those who
// use them will be told (see checkUsable).
func (s *Snapshotter) repair(id string, info snapshots.Info) {
	_, err := os.Lstat(s.upper(id))
	if err == nil {
		return
	}
	if info.Kind == snapshots.KindView {
		err = os.MkdirAll(s.upper(id), 0o755)
	}
	if err != nil {
		s.cfg.Log.Error("data of a snapshot was deleted, remove it and pull the image again", "snapshot", info.Name, "dir", s.dir(id), "err", err)
	}
}

// remount mounts the trees of the snapshots in use, so that Images knows about them. What fails is left to Mounts; each
// image that fails is tried and told once.
func (s *Snapshotter) remount(ctx context.Context, keys []string) error {
	limited, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	var failed sync.Map // chain IDs
	var g errgroup.Group
	g.SetLimit(mountsAtOnce)
	for _, key := range keys {
		g.Go(func() error {
			snap, err := s.load(limited, key)
			chainID := snap.chain.remote.ChainID
			if _, again := failed.Load(chainID); err == nil && again {
				return nil
			}
			if err == nil {
				_, err = s.ensureTree(limited, snap)
			}
			if err == nil {
				return nil
			}
			if _, again := failed.LoadOrStore(chainID, true); !again {
				s.cfg.Log.Error("block image of a snapshot in use cannot be mounted, trying again when it is asked for", "snapshot", key, "chain", chainID, "err", err)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}
