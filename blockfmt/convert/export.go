package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// WriteLayout writes the block image and its companion into an OCI image layout, made if dir is none yet. The block image gets
// the tag, which is taken from another image of the layout if that has it; the companion is listed without one.
func (r *Result) WriteLayout(dir, tag string) error {
	if err := r.writeLayout(dir, tag); err != nil {
		return fmt.Errorf("write block image to %s: %w", dir, err)
	}
	return nil
}

func (r *Result) writeLayout(dir, tag string) error {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, digest.SHA256.String())
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for d, c := range r.blobs {
		if err := writeBlob(filepath.Join(blobs, d.Encoded()), c); err != nil {
			return err
		}
	}
	manifest, companion := r.listed(r.Manifest, blockfmt.ArtifactType), r.listed(r.Companion, blockfmt.CompanionType)
	for d, data := range map[digest.Digest][]byte{manifest.Digest: r.Manifest, companion.Digest: r.Companion} {
		if err := writeBlob(filepath.Join(blobs, d.Encoded()), content{size: int64(len(data)), data: data}); err != nil {
			return err
		}
	}
	manifest.Platform = &ocispec.Platform{
		Architecture: r.src.Platform.Architecture, OS: r.src.Platform.OS, Variant: r.src.Platform.Variant, OSFeatures: []string{blockfmt.OSFeature},
	}
	if tag != "" {
		manifest.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	}
	return writeIndex(dir, tag, manifest, companion)
}

// listed describes a manifest for the layout's index.
func (r *Result) listed(manifest []byte, artifactType string) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
	}
}

// writeIndex adds descriptors to a layout's index, in place of those with the same digest or tag.
func writeIndex(dir, tag string, add ...ocispec.Descriptor) error {
	path := filepath.Join(dir, ocispec.ImageIndexFile)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	data, err := readBounded(path)
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil && !errors.Is(err, blockfmt.ErrNotFound) {
		return fmt.Errorf("index: %w", err)
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		same := slices.ContainsFunc(add, func(a ocispec.Descriptor) bool { return a.Digest == d.Digest })
		return same || tag != "" && d.Annotations[ocispec.AnnotationRefName] == tag
	})
	index.Manifests = append(index.Manifests, add...)
	if data, err = json.Marshal(index); err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, ocispec.ImageLayoutFile), layout); err != nil {
		return err
	}
	return replaceFile(path, data)
}

// writeBlob copies a blob to path unless it is there.
func writeBlob(path string, c content) error {
	if info, err := os.Stat(path); err == nil && info.Size() == c.size {
		return nil
	}
	from, err := c.open()
	if err != nil {
		return err
	}
	defer from.Close()
	return replace(path, func(w io.Writer) error {
		_, err := io.Copy(w, from)
		return err
	})
}

func replaceFile(path string, data []byte) error {
	return replace(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// replace makes path hold what write gives, all of it or, if anything fails, what it held before: a new file in the same
// directory is written and synced and then renamed.
func replace(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}
