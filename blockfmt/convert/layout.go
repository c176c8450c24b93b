package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// layoutStore is an OCI image layout.
type layoutStore struct {
	dir   string
	index ocispec.Index
}

// openLayout opens the layout that "DIR:TAG" or "DIR" names and returns what to ask it for.
func openLayout(name string) (store, string, error) {
	dir, tag := name, ""
	if i := strings.LastIndexByte(name, ':'); i > 0 && !strings.ContainsRune(name[i:], '/') {
		dir, tag = name[:i], name[i+1:]
	}
	s := &layoutStore{dir: dir}
	data, err := readBounded(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, "", fmt.Errorf("OCI layout %s: %w", dir, err)
	}
	if err := json.Unmarshal(data, &s.index); err != nil {
		return nil, "", fmt.Errorf("OCI layout %s: index: %w: %w", dir, err, blockfmt.ErrCorrupt)
	}
	if tag == "" {
		if len(s.index.Manifests) != 1 {
			return nil, "", fmt.Errorf("OCI layout %s holds %d images, name one as oci:DIR:TAG: %w", dir, len(s.index.Manifests), blockfmt.ErrNotFound)
		}
		return s, s.index.Manifests[0].Digest.String(), nil
	}
	for _, d := range s.index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			return s, d.Digest.String(), nil
		}
	}
	return nil, "", fmt.Errorf("OCI layout %s has no tag %s: %w", dir, tag, blockfmt.ErrNotFound)
}

func (s *layoutStore) manifest(_ context.Context, ref string) ([]byte, ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{Digest: digest.Digest(ref)}
	if err := checkDescriptor(desc); err != nil {
		return nil, desc, err
	}
	data, err := readBounded(s.path(desc.Digest))
	if err != nil {
		return nil, desc, fmt.Errorf("manifest: %w", err)
	}
	if got := digest.FromBytes(data); got != desc.Digest {
		return nil, desc, fmt.Errorf("manifest hashes to %s, want %s: %w", got, desc.Digest, blockfmt.ErrCorrupt)
	}
	desc.Size, desc.MediaType = int64(len(data)), mediaTypeOf(data)
	return data, desc, nil
}

// mediaTypeOf returns the media type that a manifest gives itself. OCI's are allowed to leave it out.
func mediaTypeOf(manifest []byte) string {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	_ = json.Unmarshal(manifest, &m) // reported when the manifest is read in full
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

func (s *layoutStore) blob(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(s.path(desc.Digest))
	if err != nil {
		return nil, fileKind(err)
	}
	return f, nil
}

// path is where a blob lies; the digest has been validated.
func (s *layoutStore) path(d digest.Digest) string {
	return filepath.Join(s.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// readBounded reads a file of at most blockfmt.MaxManifestSize bytes.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileKind(err)
	}
	defer f.Close()
	return readManifest(f)
}

// readManifest reads at most blockfmt.MaxManifestSize bytes and refuses more.
func readManifest(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, blockfmt.MaxManifestSize+1))
	if err == nil && len(data) > blockfmt.MaxManifestSize {
		err = errManifestSize
	}
	return data, err
}

var errManifestSize = fmt.Errorf("manifest is larger than %d bytes: %w", blockfmt.MaxManifestSize, blockfmt.ErrUnsupported)

func fileKind(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	return err
}
