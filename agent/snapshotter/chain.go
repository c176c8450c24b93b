package snapshotter

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// LabelRemote marks a remote snapshot in its record; the value is its chain ID. Clients cannot set it.
const LabelRemote = "containerd.io/snapshot/xylem.remote"

// chain is what lies below a snapshot, as far as it matters for mounting.
type chain struct {
	parentID string   // of the direct parent; "" if there is none
	normal   []string // IDs of the normal snapshots, topmost first, down to the topmost remote one
	remote   Request  // the topmost remote snapshot; its ChainID is "" if there is none
}

// readChain follows the parents of a snapshot. ctx carries a transaction.
func readChain(ctx context.Context, parent string) (c chain, err error) {
	for name := parent; name != ""; {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return chain{}, fmt.Errorf("parent snapshot %q: %w", name, err)
		}
		if info.Kind != snapshots.KindCommitted {
			return chain{}, fmt.Errorf("parent snapshot %q is not committed: %w", name, errdefs.ErrInvalidArgument)
		}
		if c.parentID == "" {
			c.parentID = id
		}
		if remote := digest.Digest(info.Labels[LabelRemote]); remote != "" {
			c.remote = requestOf(info.Labels, remote)
			return c, nil
		}
		c.normal = append(c.normal, id)
		name = info.Parent
	}
	return c, nil
}

// requestOf collects what the labels of a pull, or of the remote snapshot that came of it, say about its image.
func requestOf(labels map[string]string, chainID digest.Digest) Request {
	req := Request{Ref: labels[snapshotters.TargetRefLabel], ChainID: chainID, Labels: labels}
	if d := digest.Digest(labels[snapshotters.TargetManifestDigestLabel]); d.Validate() == nil {
		req.Manifest = d
	}
	return req
}

// withoutOurs returns a copy of labels that came from a client without those that only we set.
func withoutOurs(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	delete(labels, LabelRemote)
	return labels
}

// optionsOf returns the labels and the parent that options carry.
func optionsOf(opts []snapshots.Opt) (labels map[string]string, parent string, err error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, "", err
		}
	}
	return withoutOurs(info.Labels), info.Parent, nil
}
