package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// layout is a place that is an OCI image layout on this node: an image that was converted here and not pushed.
type layout struct{ dir string }

func (l layout) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.80q: %w", d, blockfmt.ErrCorrupt)
	}
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

// read returns a blob of at most limit bytes, checked against its digest.
func (l layout) read(d digest.Digest, limit int64) ([]byte, error) {
	path, err := l.path(d)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: %w", l.dir, err, blockfmt.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, at most %d: %w", path, st.Size(), limit, blockfmt.ErrUnsupported)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(data) != d {
		return nil, fmt.Errorf("%s does not match its digest: %w", path, blockfmt.ErrCorrupt)
	}
	return data, nil
}

func (l layout) Referrers(_ context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	text, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", l.dir, err, blockfmt.ErrCorrupt)
	}
	var found []ocispec.Descriptor
	for _, desc := range index.Manifests {
		body, err := l.read(desc.Digest, blockfmt.MaxManifestSize)
		if err != nil {
			return nil, err
		}
		var m ocispec.Manifest
		if json.Unmarshal(body, &m) == nil && m.ArtifactType == artifactType && m.Subject != nil && m.Subject.Digest == d {
			found = append(found, desc)
		}
	}
	return found, nil
}

func (l layout) Manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	return l.read(d, blockfmt.MaxManifestSize)
}

func (l layout) Blob(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return l.read(desc.Digest, maxMetadataStored)
}

func (l layout) Range(_ context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error) {
	path, err := l.path(blob)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}
