package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxReferrerPages bounds the pages of a list of referrers that are read.
const maxReferrerPages = 16

// Referrers returns the descriptors of the manifests whose subject is the manifest d and whose artifact type is
// artifactType (any if empty); none is no error. It asks the referrers API, and where that does not exist looks for the
// tag of the distribution specification's fallback.
func (r *Repository) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := validate(d); err != nil {
		return nil, err
	}
	ctx, cancel := r.withTimeout(ctx)
	defer cancel()
	var list []ocispec.Descriptor
	noAPI := r.client.noAPI.get(r.host) != ""
	var err error
	if !noAPI {
		list, err = r.referrersAPI(ctx, d, artifactType)
		noAPI = errors.Is(err, blockfmt.ErrNotFound) || errors.Is(err, blockfmt.ErrUnsupported)
		if errors.Is(err, errUnrouted) || errors.Is(err, blockfmt.ErrUnsupported) {
			r.client.noAPI.set(r.host, "none", noAPILife)
		}
	}
	if noAPI {
		list, err = r.referrersTag(ctx, d)
	}
	if err != nil {
		return nil, fmt.Errorf("referrers of %s in %s: %w", d, r, err)
	}
	return slices.DeleteFunc(list, func(e ocispec.Descriptor) bool {
		return (artifactType != "" && e.ArtifactType != artifactType) || e.Digest.Validate() != nil || e.Size < 0
	}), nil
}

// referrersAPI returns ErrNotFound or ErrUnsupported if the registry does not have the API: one that has it answers a
// question for an unknown digest with an empty list.
func (r *Repository) referrersAPI(ctx context.Context, d digest.Digest, artifactType string) (list []ocispec.Descriptor, err error) {
	next := r.url("referrers", d.String())
	if artifactType != "" {
		next += "?" + url.Values{"artifactType": {artifactType}}.Encode()
	}
	header := http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	for page := 0; next != "" && page < maxReferrerPages; page++ {
		err := r.call(ctx, request{method: http.MethodGet, url: next, header: header}, func(resp *http.Response) error {
			if t := mediaType(resp); t != ocispec.MediaTypeImageIndex {
				return fmt.Errorf("answer of type %.60q: %w", t, blockfmt.ErrUnsupported)
			}
			body, err := readBounded(resp, blockfmt.MaxManifestSize)
			if err != nil {
				return err
			}
			next = r.nextPage(resp)
			list, err = appendManifests(list, body)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// nextPage returns the URL of the Link header with rel="next", if it is one of this registry.
func (r *Repository) nextPage(resp *http.Response) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	if !ok || !strings.Contains(params, `rel="next"`) {
		return ""
	}
	u, err := resp.Request.URL.Parse(target)
	if err != nil || u.Host != r.host {
		return ""
	}
	return u.String()
}

func (r *Repository) referrersTag(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	body, _, err := r.manifest(ctx, strings.Replace(d.String(), ":", "-", 1))
	if errors.Is(err, blockfmt.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return appendManifests(nil, body)
}

func appendManifests(list []ocispec.Descriptor, index []byte) ([]ocispec.Descriptor, error) {
	var ix ocispec.Index
	if err := json.Unmarshal(index, &ix); err != nil {
		return nil, fmt.Errorf("list of referrers: %w: %w", err, blockfmt.ErrCorrupt)
	}
	return append(list, ix.Manifests...), nil
}
