package blockfmt

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names of ours in manifests, beside the specification's.
const (
	// ArtifactType of a block image; its subject is the source manifest, through which it is found.
	ArtifactType = "application/vnd.xylem.block-image.v1"
	// CompanionType of the manifest that keeps what only some readers of a block image need (see Companion).
	CompanionType = "application/vnd.xylem.companion.v1"
	// MediaTypeBlob of the device blobs: concatenated zstd frames of raw file data.
	MediaTypeBlob = "application/vnd.xylem.blob.v1+zstd"
	// MediaTypeRecord of a startup record (see Record).
	MediaTypeRecord = "application/vnd.xylem.startup-record.v1"

	AnnotationCompanion     = "dev.xylem.companion"      // on the manifest: digest of the companion manifest
	AnnotationStartupBlocks = "dev.xylem.startup-blocks" // on a blob: how many of its first blocks hold startup files
	AnnotationRunningBlocks = "dev.xylem.running-blocks" // on a blob: how many of its first blocks hold what running programs read

	// MaxManifestSize and MaxMetadataSize bound in bytes what is read of a manifest, config or index of manifests, and of an
	// EROFS metadata image.
	MaxManifestSize = 4 << 20
	MaxMetadataSize = 4 << 30
	// MaxLayers bounds the layers of an image.
	MaxLayers = 1024
)

// Artifact is the parsed manifest and config of a block image:
//
//	layers: [device blob][chunk index]  once per source layer, bottom up;  last: [merged metadata image]
//
// Immutable once parsed or built.
type Artifact struct {
	Digest    digest.Digest      // of the manifest
	Source    ocispec.Descriptor // the manifest it was made from, the artifact's subject
	Platform  ocispec.Platform
	Layers    []Layer            // one per source layer, bottom up
	Metadata  ocispec.Descriptor // the merged EROFS metadata image; layer i's blob is its device i+1
	Companion digest.Digest      // manifest of the companion, or empty
}

// Layer is one source layer within an Artifact.
type Layer struct {
	DiffID        digest.Digest      // of the source layer
	Blob          ocispec.Descriptor // role device
	Index         ocispec.Descriptor // its chunk index
	StartupBlocks int                // the first blocks of Blob hold the startup files, in startup order; 0 if unknown
	RunningBlocks int                // the first blocks of Blob, those included, hold what running programs read; 0 if unknown
}

// sourceInfo is what a block image's config says about its source, under the key "xylem".
type sourceInfo struct {
	Source  ocispec.Descriptor `json:"source"`
	DiffIDs []digest.Digest    `json:"diffIDs"`
}

type artifactConfig struct {
	ocispec.Image
	Xylem *sourceInfo `json:"xylem,omitempty"`
}

// ChainIDs returns the OCI chain ID of every prefix of the source's layers: element i is for layers 0 to i.
func (a *Artifact) ChainIDs() []digest.Digest {
	ids := make([]digest.Digest, len(a.Layers))
	for i, l := range a.Layers {
		ids[i] = l.DiffID
	}
	return identity.ChainIDs(ids)
}

// Build returns the manifest and config of the artifact, and sets a.Digest. sourceConfig is the source image's config, which
// stays as it is but for os.features, rootfs and history. Deterministic. Sign changes the manifest and so the digest.
func (a *Artifact) Build(sourceConfig []byte) (manifest, config []byte, err error) {
	var cfg artifactConfig
	if err := json.Unmarshal(sourceConfig, &cfg.Image); err != nil {
		return nil, nil, fmt.Errorf("config of %s: %w: %w", a.Source.Digest, err, ErrCorrupt)
	}
	if !slices.Contains(cfg.OSFeatures, OSFeature) {
		cfg.OSFeatures = append(cfg.OSFeatures, OSFeature)
	}
	cfg.History = nil
	cfg.RootFS = ocispec.RootFS{Type: "layers"}
	cfg.Xylem = &sourceInfo{Source: ocispec.Descriptor{MediaType: a.Source.MediaType, Digest: a.Source.Digest, Size: a.Source.Size}}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType,
		Subject: &cfg.Xylem.Source,
	}
	for _, l := range a.Layers {
		cfg.Xylem.DiffIDs = append(cfg.Xylem.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, l.Blob, l.Index)
	}
	m.Layers = append(m.Layers, a.Metadata)
	for _, d := range m.Layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, uncompressedDigest(d))
	}
	if config, err = json.Marshal(cfg); err != nil {
		return nil, nil, err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if a.Companion != "" {
		m.Annotations = map[string]string{AnnotationCompanion: a.Companion.String()}
	}
	if manifest, err = json.Marshal(m); err != nil {
		return nil, nil, err
	}
	a.Digest = digest.FromBytes(manifest)
	return manifest, config, nil
}

func uncompressedDigest(d ocispec.Descriptor) digest.Digest {
	if u := d.Annotations[AnnotationUncompressedDigest]; u != "" {
		return digest.Digest(u)
	}
	return d.Digest
}

// ParseArtifact reads a block image's manifest and config. It returns ErrUnsupported for something that is not a block
// image of ours, ErrCorrupt for one that contradicts itself or its config. It does not check who made it: see VerifySignature.
func ParseArtifact(manifest, config []byte) (*Artifact, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("manifest of block image: %w: %w", err, ErrCorrupt)
	}
	a := &Artifact{Digest: digest.FromBytes(manifest)}
	fail := func(kind error, format string, args ...any) (*Artifact, error) {
		return nil, fmt.Errorf("block image %s: %s: %w", a.Digest, fmt.Sprintf(format, args...), kind)
	}
	if m.ArtifactType != ArtifactType {
		return fail(ErrUnsupported, "artifact type %.80q", m.ArtifactType)
	}
	if got := digest.FromBytes(config); got != m.Config.Digest {
		return fail(ErrCorrupt, "config has digest %s, manifest says %s", got, m.Config.Digest)
	}
	var cfg artifactConfig
	if err := json.Unmarshal(config, &cfg); err != nil {
		return fail(ErrCorrupt, "config: %v", err)
	}
	switch {
	case cfg.Xylem == nil || m.Subject == nil || cfg.Xylem.Source.Digest != m.Subject.Digest:
		return fail(ErrCorrupt, "config and subject name different sources")
	case len(m.Layers) != 2*len(cfg.Xylem.DiffIDs)+1 || len(m.Layers) < 3 || len(m.Layers) > 2*MaxLayers+1:
		return fail(ErrCorrupt, "%d layers for %d source layers", len(m.Layers), len(cfg.Xylem.DiffIDs))
	}
	a.Source, a.Platform = cfg.Xylem.Source, cfg.Platform
	for _, d := range append([]ocispec.Descriptor{a.Source}, m.Layers...) {
		if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 || d.Size < 0 {
			return fail(ErrCorrupt, "descriptor %.80q of %d bytes", d.Digest, d.Size)
		}
	}
	for i, diffID := range cfg.Xylem.DiffIDs {
		l := Layer{DiffID: diffID, Blob: m.Layers[2*i], Index: m.Layers[2*i+1]}
		if err := l.validate(); err != nil {
			return fail(ErrCorrupt, "source layer %d: %v", i, err)
		}
		l.StartupBlocks = blocksHint(l.Blob, AnnotationStartupBlocks)
		l.RunningBlocks = blocksHint(l.Blob, AnnotationRunningBlocks)
		a.Layers = append(a.Layers, l)
	}
	a.Metadata = m.Layers[len(m.Layers)-1]
	if mt := a.Metadata.MediaType; mt != MediaTypeEROFS && mt != MediaTypeEROFSZstd {
		return fail(ErrCorrupt, "metadata of type %.80q", mt)
	}
	if c := m.Annotations[AnnotationCompanion]; c != "" {
		var err error
		if a.Companion, err = digest.Parse(c); err != nil {
			return fail(ErrCorrupt, "companion %.80q", c)
		}
	}
	return a, nil
}

// StartupBlocks returns how many startup blocks the manifest of a block image announces: of several images of one source, the one
// with more starts faster. It is 0 for what is no manifest.
func StartupBlocks(manifest []byte) (n int) {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil {
		return 0
	}
	for _, l := range m.Layers {
		n += blocksHint(l, AnnotationStartupBlocks)
	}
	return n
}

// blocksHint returns the number of blocks in an annotation. It is a hint: 0 if it makes no sense.
func blocksHint(blob ocispec.Descriptor, annotation string) int {
	n, err := strconv.Atoi(blob.Annotations[annotation])
	if err != nil {
		return 0
	}
	return max(n, 0)
}

func (l *Layer) validate() error {
	if err := l.DiffID.Validate(); err != nil {
		return fmt.Errorf("diffID %.80q: %w", l.DiffID, err)
	}
	if role := l.Blob.Annotations[AnnotationRole]; role != RoleDevice {
		return fmt.Errorf("blob has role %.80q", role)
	}
	if l.Index.MediaType != MediaTypeChunkIndex {
		return fmt.Errorf("chunk index of type %.80q", l.Index.MediaType)
	}
	if t := l.Index.Annotations[AnnotationChunkIndexTarget]; t != "" && t != l.Blob.Digest.String() {
		return fmt.Errorf("chunk index is for %.80q", t)
	}
	return nil
}
