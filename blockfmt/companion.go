package blockfmt

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Companion is the manifest beside a block image, with the same subject, that keeps what only some readers need: the
// EROFS metadata image of each source layer, from which the merged one of any prefix can be made, and the startup record.
// It is named by digest in the block image's manifest and so covered by its signature.
type Companion struct {
	Source ocispec.Descriptor
	Layers []ocispec.Descriptor // per source layer, bottom up: EROFS metadata with overlayfs whiteouts, media type MediaTypeEROFSZstd
	Record *ocispec.Descriptor  // media type MediaTypeRecord, or nil
}

// Build returns the companion's manifest; its config is ocispec.DescriptorEmptyJSON, the blob "{}". Deterministic.
func (c *Companion) Build() ([]byte, error) {
	layers := c.Layers
	if c.Record != nil {
		layers = append(append([]ocispec.Descriptor{}, layers...), *c.Record)
	}
	config := ocispec.DescriptorEmptyJSON
	return json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: CompanionType,
		Config: ocispec.Descriptor{MediaType: config.MediaType, Digest: config.Digest, Size: config.Size}, Layers: layers, Subject: &c.Source,
	})
}

// ParseCompanion reads a companion manifest, for a block image of the given number of source layers.
func ParseCompanion(manifest []byte, layers int) (*Companion, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("companion manifest: %w: %w", err, ErrCorrupt)
	}
	if layers < 0 || m.ArtifactType != CompanionType || m.Subject == nil || len(m.Layers) < layers || len(m.Layers) > layers+1 {
		return nil, fmt.Errorf("companion manifest of type %.80q has %d layers for %d: %w", m.ArtifactType, len(m.Layers), layers, ErrCorrupt)
	}
	for _, d := range m.Layers {
		if d.Digest.Validate() != nil || d.Size < 0 {
			return nil, fmt.Errorf("companion manifest has descriptor %.80q of %d bytes: %w", d.Digest, d.Size, ErrCorrupt)
		}
	}
	c := &Companion{Source: *m.Subject, Layers: m.Layers[:layers]}
	if len(m.Layers) > layers {
		c.Record = &m.Layers[layers]
	}
	return c, nil
}
