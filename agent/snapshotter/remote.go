package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxTold bounds the number of images that the log has named as unpacked; beyond it, they may be named again.
const maxTold = 1024

// prepareRemote returns nil if a layer has to be unpacked, ErrAlreadyExists if it is now a remote snapshot.
//
// containerd offers a layer by the label snapshot.ref and, on that error, looks for a committed snapshot with the same
// label and parent. A client that sends no such label (`ctr image pull` of 1.x) takes the error for a failure, so its
// layers are unpacked.
func (s *Snapshotter) prepareRemote(ctx context.Context, key, parent, target string, labels map[string]string) error {
	chainID, err := digest.Parse(target)
	if err != nil {
		return nil // no chain ID, so no layer of an image
	}
	found, err := s.resolve(ctx, requestOf(labels, chainID), parent == "")
	if err != nil || !found {
		return err
	}
	labels[LabelRemote] = chainID.String()
	if err := s.recordRemote(ctx, key, parent, target, labels); err != nil {
		s.forgetUnused(ctx, chainID)
		return fmt.Errorf("remote snapshot %s: %w", chainID, err)
	}
	return fmt.Errorf("layers %s need not be unpacked: %w", chainID, errdefs.ErrAlreadyExists)
}

// resolve asks whether the tree of some layers can be mounted. That it cannot is told once for each image.
func (s *Snapshotter) resolve(ctx context.Context, req Request, bottom bool) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	err := s.images.Resolve(limited, req)
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case s.cfg.Strict && !errors.Is(err, blockfmt.ErrNotFound):
		return false, fmt.Errorf("look up block image of %q: %w: %w", req.Ref, err, errdefs.ErrUnavailable)
	case !s.tell(req, bottom):
	case errors.Is(err, blockfmt.ErrNotFound):
		s.cfg.Log.Info("no block image, layers are unpacked", "ref", req.Ref, "manifest", req.Manifest, "err", err)
	default:
		s.cfg.Log.Warn("block image cannot be looked up, layers are unpacked", "ref", req.Ref, "manifest", req.Manifest, "err", err)
	}
	return false, nil
}

// tell reports whether the log should name the image: when its bottom layer is offered, which happens once a pull unless
// another image brought that layer before, and else if it has not been named yet.
func (s *Snapshotter) tell(req Request, bottom bool) bool {
	image := cmp.Or(req.Manifest.String(), req.Ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bottom && (image == "" || s.told[image]) {
		return false
	}
	if len(s.told) >= maxTold {
		clear(s.told)
	}
	s.told[image] = true
	return true
}

// recordRemote writes the record of a remote snapshot, unless it is there already.
//
// Its name is the target, or the target and its parent's ID if a snapshot with another parent has that name: containerd's
// namespaces share this snapshotter, and a layer below may be remote in one and unpacked in the other.
func (s *Snapshotter) recordRemote(ctx context.Context, key, parent, target string, labels map[string]string) error {
	chainID, counted := digest.Digest(labels[LabelRemote]), false
	err := s.write(ctx, func(ctx context.Context) error {
		below, err := readChain(ctx, parent)
		if err != nil {
			return err
		}
		for _, name := range []string{target, target + "@" + below.parentID} {
			_, info, _, err := storage.GetInfo(ctx, name)
			if errdefs.IsNotFound(err) {
				s.count(chainID, 1)
				counted = true
				return createRemote(ctx, key, name, parent, labels)
			}
			if err != nil || info.Labels[LabelRemote] == chainID.String() && info.Parent == parent {
				return err
			}
		}
		return fmt.Errorf("name %q is taken: %w", target, errdefs.ErrFailedPrecondition)
	})
	if err != nil && counted {
		s.count(chainID, -1)
	}
	return err
}

// createRemote makes a committed snapshot in the only way the store knows, by way of an active one.
func createRemote(ctx context.Context, key, name, parent string, labels map[string]string) error {
	if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent); err != nil {
		return err
	}
	_, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, snapshots.WithLabels(labels))
	return err
}

// count notes that there are n more remote snapshots of a chain and returns how many there are now.
func (s *Snapshotter) count(chainID digest.Digest, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains[chainID] += n
	if s.chains[chainID] > 0 {
		return s.chains[chainID]
	}
	delete(s.chains, chainID)
	return 0
}
