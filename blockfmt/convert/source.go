package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// Docker's media types of manifests, beside those of image-spec.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Source is an OCI image that can be converted: one manifest, of one platform. Immutable.
type Source struct {
	Ref        string             // as it was given to Open
	Descriptor ocispec.Descriptor // of the manifest
	Manifest   []byte
	Config     []byte
	Platform   ocispec.Platform
	Layers     []ocispec.Descriptor // bottom up
	DiffIDs    []digest.Digest      // of the layers, as the config claims them

	store store
}

// store is where an image lies: a registry's repository or an OCI layout.
type store interface {
	// manifest returns a manifest or index, at most blockfmt.MaxManifestSize bytes. ref is a tag, or a digest that the
	// bytes are verified against.
	manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error)
	// blob opens a blob. The bytes are not verified.
	blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// Open finds the image that ref names: a registry reference, or oci:DIR:TAG for an OCI image layout (oci:DIR if it holds one
// image only). platform is "os/arch" or "os/arch/variant"; empty means this machine's. It is used to choose from an index; an
// image that is no index is taken as it is.
func Open(ctx context.Context, ref, platform string, reg Registry) (*Source, error) {
	want, err := parsePlatform(platform)
	if err != nil {
		return nil, err
	}
	s := &Source{Ref: ref}
	var name string
	if path, ok := strings.CutPrefix(ref, "oci:"); ok {
		s.store, name, err = openLayout(path)
	} else {
		s.store, name, err = openRepository(ctx, ref, reg)
	}
	if err != nil {
		return nil, err
	}
	if err := s.open(ctx, name, want); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return s, nil
}

// open follows indexes to the platform's manifest and reads it and its config.
func (s *Source) open(ctx context.Context, name string, want ocispec.Platform) (err error) {
	for depth := 0; ; depth++ {
		if s.Manifest, s.Descriptor, err = s.store.manifest(ctx, name); err != nil {
			return err
		}
		if !isIndex(s.Descriptor.MediaType) {
			break
		}
		if depth == 4 {
			return fmt.Errorf("indexes nested deeper than %d: %w", depth, blockfmt.ErrUnsupported)
		}
		var index ocispec.Index
		if err := json.Unmarshal(s.Manifest, &index); err != nil {
			return fmt.Errorf("index: %w: %w", err, blockfmt.ErrCorrupt)
		}
		desc, err := choose(index.Manifests, want)
		if err != nil {
			return err
		}
		name = desc.Digest.String()
	}
	return s.parse(ctx)
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerManifestList
}

// parse reads the manifest and its config and checks that they fit together.
func (s *Source) parse(ctx context.Context) error {
	if mt := s.Descriptor.MediaType; mt != ocispec.MediaTypeImageManifest && mt != dockerManifest {
		return fmt.Errorf("manifest of type %.80q: %w", mt, blockfmt.ErrUnsupported)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(s.Manifest, &m); err != nil {
		return fmt.Errorf("manifest: %w: %w", err, blockfmt.ErrCorrupt)
	}
	if m.ArtifactType == blockfmt.ArtifactType {
		return fmt.Errorf("it is a block image already: %w", blockfmt.ErrUnsupported)
	}
	if len(m.Layers) == 0 || len(m.Layers) > blockfmt.MaxLayers {
		return fmt.Errorf("%d layers, can convert 1 to %d: %w", len(m.Layers), blockfmt.MaxLayers, blockfmt.ErrUnsupported)
	}
	for i, l := range m.Layers {
		if !layerTypes[l.MediaType] {
			return fmt.Errorf("layer %d is of type %.80q: %w", i, l.MediaType, blockfmt.ErrUnsupported)
		}
		if err := checkDescriptor(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	s.Layers = m.Layers
	return s.parseConfig(ctx, m.Config)
}

func (s *Source) parseConfig(ctx context.Context, desc ocispec.Descriptor) (err error) {
	if err := checkDescriptor(desc); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if desc.Size > blockfmt.MaxManifestSize {
		return fmt.Errorf("config of %d bytes, at most %d: %w", desc.Size, blockfmt.MaxManifestSize, blockfmt.ErrUnsupported)
	}
	rc, err := s.store.blob(ctx, desc)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	defer rc.Close()
	if s.Config, err = io.ReadAll(newVerifier(rc, desc, digest.SHA256.Hash())); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	var config ocispec.Image
	if err := json.Unmarshal(s.Config, &config); err != nil {
		return fmt.Errorf("config: %w: %w", err, blockfmt.ErrCorrupt)
	}
	s.Platform, s.DiffIDs = config.Platform, config.RootFS.DiffIDs
	if len(s.DiffIDs) != len(s.Layers) {
		return fmt.Errorf("%d layers but %d diffIDs: %w", len(s.Layers), len(s.DiffIDs), blockfmt.ErrCorrupt)
	}
	for i, d := range s.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("diffID %d is %.80q: %w", i, d, blockfmt.ErrCorrupt)
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil || d.Size < 0 {
		return fmt.Errorf("descriptor %.80q of %d bytes: %w", d.Digest, d.Size, blockfmt.ErrCorrupt)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.80q: %w", d.Digest, blockfmt.ErrUnsupported)
	}
	return nil
}

func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		return normalize(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}), nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return ocispec.Platform{}, fmt.Errorf("platform %.80q: want os/arch or os/arch/variant", s)
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normalize(p), nil
}

// normalize makes the two ways in which some platforms are written one.
func normalize(p ocispec.Platform) ocispec.Platform {
	switch {
	case p.Architecture == "aarch64":
		p.Architecture = "arm64"
	case p.Architecture == "x86_64":
		p.Architecture = "amd64"
	}
	switch {
	case p.Architecture == "arm64" && p.Variant == "v8", p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// choose returns the first manifest for the platform that is neither an attestation nor in need of features, such as a block
// image listed beside its source.
func choose(manifests []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	var have []string
	for _, d := range manifests {
		if d.Platform == nil {
			if len(manifests) == 1 {
				return d, nil
			}
			continue
		}
		p := normalize(*d.Platform)
		if p.OS == want.OS && p.Architecture == want.Architecture && p.Variant == want.Variant && len(p.OSFeatures) == 0 {
			return d, checkDescriptor(d)
		}
		have = append(have, strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
	}
	name := strings.TrimSuffix(want.OS+"/"+want.Architecture+"/"+want.Variant, "/")
	return ocispec.Descriptor{}, fmt.Errorf("nothing for platform %s among %.200q: %w", name, strings.Join(have, " "), blockfmt.ErrNotFound)
}
