package convert

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// Content is where an image is read that is reached in another way than by Open. Safe for concurrent use. Errors wrap blockfmt's kinds.
type Content interface {
	// Manifest returns a manifest or index, at most blockfmt.MaxManifestSize bytes, and its media type.
	Manifest(ctx context.Context, d digest.Digest) (body []byte, mediaType string, err error)
	// Blob opens a blob. The bytes are not verified.
	Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// OpenContent is Open for an image with this manifest in content, for this machine's platform. ref is what people call it, and the
// repository that Result.Push pushes to if no other is named.
func OpenContent(ctx context.Context, ref string, manifest digest.Digest, content Content) (*Source, error) {
	want, err := parsePlatform("")
	if err != nil {
		return nil, err
	}
	s := &Source{Ref: ref, store: contentStore{content}}
	if err := s.open(ctx, manifest.String(), want); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return s, nil
}

// contentStore is a Content as a store.
type contentStore struct{ content Content }

func (c contentStore) manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{Digest: digest.Digest(ref)}
	if err := checkDescriptor(desc); err != nil {
		return nil, desc, err
	}
	body, mediaType, err := c.content.Manifest(ctx, desc.Digest)
	if err != nil {
		return nil, desc, fmt.Errorf("manifest %s: %w", ref, err)
	}
	if got := digest.FromBytes(body); got != desc.Digest {
		return nil, desc, fmt.Errorf("manifest hashes to %s, want %s: %w", got, desc.Digest, blockfmt.ErrCorrupt)
	}
	if mediaType == "" {
		mediaType = mediaTypeOf(body)
	}
	desc.Size, desc.MediaType = int64(len(body)), mediaType
	return body, desc, nil
}

func (c contentStore) blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return c.content.Blob(ctx, desc)
}
