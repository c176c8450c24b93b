package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// tree is one Images.Mount that an active or view snapshot holds. The zero value is for snapshots on no remote one.
type tree struct {
	chainID digest.Digest
	dir     string
}

// mountTree mounts the tree of a remote snapshot. If the image is gone, it is looked for again first.
func (s *Snapshotter) mountTree(ctx context.Context, req Request) (tree, error) {
	if req.ChainID == "" {
		return tree{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	dir, err := s.images.Mount(ctx, req.ChainID)
	if errors.Is(err, blockfmt.ErrNotFound) {
		if err = s.images.Resolve(ctx, req); err == nil {
			dir, err = s.images.Mount(ctx, req.ChainID)
		}
	}
	if err != nil {
		return tree{}, fmt.Errorf("block image of %q, layers %s: %w: %w", req.Ref, req.ChainID, err, errdefs.ErrUnavailable)
	}
	return tree{req.ChainID, dir}, nil
}

// giveBack unmounts a tree. It is passed the error because of which the tree is not needed, if there is one.
func (s *Snapshotter) giveBack(t tree, err error) error {
	if t.chainID == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Timeout)
	defer cancel()
	if uerr := s.images.Unmount(ctx, t.chainID); uerr != nil {
		s.cfg.Log.Warn("tree of a block image is not unmounted", "chain", t.chainID, "err", uerr)
	}
	return err
}

// adopt makes a snapshot the holder of a tree, unless it has one already or has been removed meanwhile: then the tree
// is given back.
func (s *Snapshotter) adopt(ctx context.Context, key, id string, t tree) error {
	if t.chainID == "" {
		return nil
	}
	s.mu.Lock()
	_, has := s.live[id]
	if !has {
		s.live[id] = t
	}
	s.mu.Unlock()
	if has {
		return s.giveBack(t, nil)
	}
	err := s.read(ctx, func(ctx context.Context) error {
		now, _, _, err := storage.GetInfo(ctx, key)
		if err == nil && now != id {
			err = errdefs.ErrNotFound
		}
		return err
	})
	if err != nil {
		s.release(id)
		return fmt.Errorf("snapshot %q was removed meanwhile: %w", key, err)
	}
	return nil
}

// release gives back the tree that a snapshot holds, if it holds one.
func (s *Snapshotter) release(id string) {
	s.mu.Lock()
	t := s.live[id]
	delete(s.live, id)
	s.mu.Unlock()
	_ = s.giveBack(t, nil)
}

// releaseAll gives back every tree.
func (s *Snapshotter) releaseAll() {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.live))
	s.mu.Unlock()
	for _, id := range ids {
		s.release(id)
	}
}

// ensureTree returns the tree of an existing snapshot, mounting it if the snapshot holds none: after a restart.
func (s *Snapshotter) ensureTree(ctx context.Context, snap snapshot) (tree, error) {
	if snap.chain.remote.ChainID == "" {
		return tree{}, nil
	}
	v, err, _ := s.mounts.Do(snap.id, func() (any, error) {
		s.mu.Lock()
		t, ok := s.live[snap.id]
		s.mu.Unlock()
		if ok {
			return t, nil
		}
		// Others may wait for the result: only the caller's deadline ends it, not that the caller goes away.
		ctx, cancel := detached(ctx)
		defer cancel()
		t, err := s.mountTree(ctx, snap.chain.remote)
		if err != nil {
			return tree{}, err
		}
		if err := s.link(snap.id, t.dir); err != nil {
			return tree{}, s.giveBack(t, err)
		}
		return t, s.adopt(ctx, snap.key, snap.id, t)
	})
	if err != nil {
		return tree{}, err
	}
	return v.(tree), nil
}

// detached returns a context that keeps ctx's values and deadline only.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(context.WithoutCancel(ctx), deadline)
	}
	return context.WithCancel(context.WithoutCancel(ctx))
}

// link points a snapshot's lower directory to where its tree is mounted now.
func (s *Snapshotter) link(id, dir string) error {
	if now, err := os.Readlink(s.lower(id)); err == nil && now == dir {
		return nil
	}
	tmp := s.lower(id) + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(dir, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, s.lower(id))
}
