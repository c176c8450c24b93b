package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/xylem-project/xylem/blockfmt"
)

// blockImageSize returns the stored bytes of ref's block image, all layers of its manifest: what a node would fetch in the
// end if it read everything.
func blockImageSize(ctx context.Context, ref string) (float64, error) {
	source, err := name.ParseReference(ref)
	if err != nil {
		return 0, err
	}
	desc, err := remote.Head(source, remote.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	referrers, err := remote.Referrers(source.Context().Digest(desc.Digest.String()), remote.WithContext(ctx),
		remote.WithFilter("artifactType", blockfmt.ArtifactType))
	if err != nil {
		return 0, err
	}
	index, err := referrers.IndexManifest()
	if err != nil {
		return 0, err
	}
	if len(index.Manifests) != 1 {
		return 0, fmt.Errorf("%s has %d block images, want 1", ref, len(index.Manifests))
	}
	manifest, err := remote.Get(source.Context().Digest(index.Manifests[0].Digest.String()), remote.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(manifest.Manifest, &m); err != nil {
		return 0, err
	}
	var total int64
	for _, l := range m.Layers {
		total += l.Size
	}
	return float64(total), nil
}
