package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// accepted are the manifest types that are asked for; without the list, old registries convert manifests.
var accepted = []string{
	ocispec.MediaTypeImageManifest,
	ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}

func acceptHeader() http.Header { return http.Header{"Accept": {strings.Join(accepted, ", ")}} }

// Resolve returns the repository of a reference and the descriptor (type, digest, size) of the manifest or index that
// its tag or digest names; without either, the tag is "latest". One HEAD request, as a rule.
func (c *Client) Resolve(ctx context.Context, ref string) (*Repository, ocispec.Descriptor, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("%w: %w", err, blockfmt.ErrUnsupported)
	}
	r, err := c.Repository(ref)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	desc, err := r.resolve(ctx, parsed.Identifier())
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("resolve %s: %w", ref, err)
	}
	return r, desc, nil
}

func (r *Repository) resolve(ctx context.Context, identifier string) (desc ocispec.Descriptor, err error) {
	ctx, cancel := r.withTimeout(ctx)
	defer cancel()
	err = r.call(ctx, request{method: http.MethodHead, url: r.url("manifests", identifier), header: acceptHeader()}, func(resp *http.Response) error {
		desc = ocispec.Descriptor{
			MediaType: mediaType(resp), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength,
		}
		return nil
	})
	if err != nil {
		return desc, err
	}
	want, byDigest := digest.Digest(identifier), strings.Contains(identifier, ":")
	switch {
	case desc.Digest.Validate() != nil || desc.Size < 0: // the header is optional
		body, mediaType, err := r.manifest(ctx, identifier)
		if err != nil {
			return desc, err
		}
		desc = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
		if byDigest && validate(want) == nil {
			desc.Digest = want // manifest has verified it
		}
	case byDigest && desc.Digest != want:
		return desc, fmt.Errorf("%s says that %s is %s: %w", r, want, desc.Digest, blockfmt.ErrCorrupt)
	}
	return desc, nil
}

// Manifest returns a manifest, index or other small document by digest, verified, and its media type.
// At most blockfmt.MaxManifestSize bytes are read.
func (r *Repository) Manifest(ctx context.Context, d digest.Digest) (body []byte, mediaType string, err error) {
	if err := validate(d); err != nil {
		return nil, "", err
	}
	ctx, cancel := r.withTimeout(ctx)
	defer cancel()
	return r.manifest(ctx, d.String())
}

// manifest reads by tag or, verified, by digest.
func (r *Repository) manifest(ctx context.Context, identifier string) (body []byte, typ string, err error) {
	want := digest.Digest(identifier)
	err = r.call(ctx, request{method: http.MethodGet, url: r.url("manifests", identifier), header: acceptHeader()}, func(resp *http.Response) error {
		typ = mediaType(resp)
		if body, err = readBounded(resp, blockfmt.MaxManifestSize); err != nil {
			return fmt.Errorf("manifest %s of %s: %w", identifier, r, err)
		}
		if want.Validate() == nil && want.Algorithm().FromBytes(body) != want {
			return fmt.Errorf("manifest %s of %s: got other bytes: %w", identifier, r, blockfmt.ErrCorrupt)
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return body, typ, nil
}

func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// readBounded reads a whole body of at most limit bytes; more is ErrCorrupt, and not read.
func readBounded(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", resp.ContentLength, limit, blockfmt.ErrCorrupt)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("more than %d bytes: %w", limit, blockfmt.ErrCorrupt)
	}
	return body, err
}

// parseContentRange reads "bytes 0-99/1000"; total is -1 if it is unknown ("*").
func parseContentRange(s string) (first, last, total int64, err error) {
	fail := func() (int64, int64, int64, error) {
		return 0, 0, 0, fmt.Errorf("Content-Range %.60q: %w", s, blockfmt.ErrCorrupt)
	}
	span, size, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 || !strings.HasPrefix(s, "bytes ") {
		return fail()
	}
	a, err1 := strconv.ParseUint(from, 10, 63)
	b, err2 := strconv.ParseUint(to, 10, 63)
	t, err3 := uint64(0), error(nil)
	if size != "*" {
		t, err3 = strconv.ParseUint(size, 10, 63)
	}
	if err1 != nil || err2 != nil || err3 != nil || a > b || (size != "*" && b >= t) {
		return fail()
	}
	if size == "*" {
		return int64(a), int64(b), -1, nil
	}
	return int64(a), int64(b), int64(t), nil
}
