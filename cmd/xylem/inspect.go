package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/blockfmt"
)

// inspection is what `xylem inspect` prints of a block image.
type inspection struct {
	Image      digest.Digest    `json:"image"`
	Source     digest.Digest    `json:"source"`
	Platform   string           `json:"platform"`
	Signature  string           `json:"signature"` // trusted, untrusted or none
	Layers     []inspectedLayer `json:"layers"`
	Metadata   digest.Digest    `json:"metadata"`
	MetaSize   int64            `json:"metadataBytes"` // as stored
	Companion  digest.Digest    `json:"companion,omitempty"`
	Recorded   bool             `json:"recorded"` // the companion holds a startup record
	RawSize    int64            `json:"rawBytes"`
	StoredSize int64            `json:"storedBytes"`
	Blocks     int              `json:"blocks"`
}

type inspectedLayer struct {
	DiffID        digest.Digest `json:"diffID"`
	Blob          digest.Digest `json:"blob"`
	Blocks        int           `json:"blocks"`
	StartupBlocks int           `json:"startupBlocks"`
	RawSize       int64         `json:"rawBytes"`
	StoredSize    int64         `json:"storedBytes"`
}

func newInspect(a *app) *cobra.Command {
	var platform string
	cmd := &cobra.Command{
		Use: "inspect REF", Short: "Show the block image of an image", Args: usage(cobra.ExactArgs(1)),
		Long: "Inspect shows the block image of REF, a registry reference or oci:DIR:TAG, or REF itself if it is one: where it comes\n" +
			"from, whether an agent with this configuration trusts it, and what its layers hold.",
	}
	cmd.Flags().StringVar(&platform, "platform", "", "`os/arch` of a multi-platform image (default this machine's)")
	addCredentialFlags(cmd, a)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in, err := a.inspect(cmd.Context(), args[0], platform)
		if errors.Is(err, errNoBlockImage) {
			err = advise(err, "make one with 'xylem convert %s --push'", args[0])
		}
		if err != nil {
			return err
		}
		return output.print(a.out, in, func(w io.Writer) { printInspection(w, in) })
	}
	return cmd
}

func printInspection(w io.Writer, in *inspection) {
	row(w, "block image", in.Image)
	row(w, "source", in.Source)
	row(w, "platform", in.Platform)
	row(w, "signature", in.Signature)
	row(w, "metadata", bytesText(in.MetaSize))
	row(w, "data", fmt.Sprintf("%s in %s, %d blocks", bytesText(in.RawSize), bytesText(in.StoredSize), in.Blocks))
	row(w, "startup record", in.Recorded)
	row(w)
	row(w, "LAYER", "BLOB", "BLOCKS", "STARTUP", "RAW", "STORED")
	for _, l := range in.Layers {
		row(w, shortDigest(l.DiffID), shortDigest(l.Blob), l.Blocks, l.StartupBlocks, bytesText(l.RawSize), bytesText(l.StoredSize))
	}
}

var errNoBlockImage = fmt.Errorf("it has no block image: %w", blockfmt.ErrNotFound)

func (a *app) inspect(ctx context.Context, ref, platform string) (*inspection, error) {
	matcher := platforms.Default()
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return nil, usageError{fmt.Errorf("--platform: %w", err)}
		}
		matcher = platforms.Only(p)
	}
	store, desc, closeStore, err := a.openStore(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer closeStore()
	keys, err := a.trusted()
	if err != nil {
		return nil, err
	}
	manifest, err := finder{store, matcher, keys}.find(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	in, err := describe(ctx, store, manifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	in.Signature = signatureOf(manifest, keys)
	return in, nil
}

// finder finds the block image of an image.
type finder struct {
	store   imageStore
	matcher platforms.MatchComparer
	trusted []ed25519.PublicKey
}

// find returns the manifest of the best block image of desc, an image or index, or of desc itself.
func (f finder) find(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	body, err := f.store.manifest(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	var m struct {
		ArtifactType string
		Manifests    []ocispec.Descriptor
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, blockfmt.ErrCorrupt)
	}
	if m.ArtifactType == blockfmt.ArtifactType {
		return body, nil
	}
	if len(m.Manifests) > 0 {
		best, err := bestPlatform(m.Manifests, f.matcher)
		if err != nil {
			return nil, err
		}
		return f.find(ctx, best)
	}
	return f.best(ctx, desc.Digest)
}

// best returns the best of an image's block images: one that is trusted, with the most startup blocks. Registries list them in
// any order, and some with the type of the config in place of the artifact type, so each manifest is read.
func (f finder) best(ctx context.Context, source digest.Digest) (best []byte, err error) {
	found, err := f.store.referrers(ctx, source)
	if err != nil {
		return nil, err
	}
	bestRank := -1
	for _, desc := range found {
		manifest, err := f.store.manifest(ctx, desc.Digest)
		if err != nil {
			return nil, err
		}
		if rank := f.rank(manifest); rank > bestRank || best != nil && rank == bestRank && bytes.Compare(manifest, best) < 0 {
			best, bestRank = manifest, rank
		}
	}
	if best == nil {
		return nil, errNoBlockImage
	}
	return best, nil
}

// rank is negative for what is no block image.
func (f finder) rank(manifest []byte) int {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil || m.ArtifactType != blockfmt.ArtifactType {
		return -1
	}
	rank := blockfmt.StartupBlocks(manifest)
	if signatureOf(manifest, f.trusted) == "trusted" {
		rank += 1 << 40
	}
	return rank
}

func bestPlatform(manifests []ocispec.Descriptor, matcher platforms.MatchComparer) (ocispec.Descriptor, error) {
	best := -1
	for i, m := range manifests {
		if m.Platform != nil && matcher.Match(*m.Platform) && (best < 0 || matcher.Less(*m.Platform, *manifests[best].Platform)) {
			best = i
		}
	}
	if best < 0 {
		return ocispec.Descriptor{}, fmt.Errorf("no image for this platform in the index: %w", blockfmt.ErrNotFound)
	}
	return manifests[best], nil
}

// describe reads what the manifest points at, as far as it is shown.
func describe(ctx context.Context, store imageStore, manifest []byte) (*inspection, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, blockfmt.ErrCorrupt)
	}
	config, err := store.blob(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	artifact, err := blockfmt.ParseArtifact(manifest, config)
	if err != nil {
		return nil, err
	}
	in := &inspection{
		Image: artifact.Digest, Source: artifact.Source.Digest, Platform: platforms.Format(artifact.Platform),
		Metadata: artifact.Metadata.Digest, MetaSize: artifact.Metadata.Size, Companion: artifact.Companion,
	}
	for i, l := range artifact.Layers {
		data, err := store.blob(ctx, l.Index)
		if err != nil {
			return nil, err
		}
		index, err := blockfmt.DecodeIndex(data, l.Blob.Digest, l.Blob.Size)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		in.Layers = append(in.Layers, inspectedLayer{l.DiffID, l.Blob.Digest, index.Len(), l.StartupBlocks, index.RawSize(), l.Blob.Size})
		in.Blocks += index.Len()
		in.RawSize += index.RawSize()
		in.StoredSize += l.Blob.Size
	}
	if artifact.Companion == "" {
		return in, nil
	}
	body, err := store.manifest(ctx, artifact.Companion)
	if err != nil {
		return nil, err
	}
	companion, err := blockfmt.ParseCompanion(body, len(artifact.Layers))
	if err != nil {
		return nil, err
	}
	in.Recorded = companion.Record != nil
	return in, nil
}

// signatureOf says in one word what an agent with these keys would think.
func signatureOf(manifest []byte, keys []ed25519.PublicKey) string {
	var m ocispec.Manifest
	switch {
	case blockfmt.VerifySignature(manifest, keys) == nil:
		return "trusted"
	case json.Unmarshal(manifest, &m) == nil && m.Annotations[blockfmt.AnnotationSignature] != "":
		return "untrusted"
	}
	return "none"
}
