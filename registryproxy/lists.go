package registryproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxTagList bounds, in bytes, one page of a list of tags.
const maxTagList = 16 << 20

// tagList answers end-8a and end-8b with the registry's own answer.
func (p *Proxy) tagList(w http.ResponseWriter, r *http.Request, t target, query url.Values) error {
	req := t.request(http.MethodGet, t.ref)
	req.Accept, req.Query = []string{"application/json"}, only(query, "n", "last")
	body, resp, err := p.list(r.Context(), t, req, maxTagList)
	if err != nil {
		return err
	}
	writeList(w, r, t, resp, body, "application/json")
	return nil
}

// referrers answers end-12a and end-12b. For a registry without the referrers API it reads the tag of the specification's
// fallback: clients would ask for that next.
func (p *Proxy) referrers(w http.ResponseWriter, r *http.Request, t target, query url.Values) error {
	req := t.request(http.MethodGet, t.ref)
	req.Accept, req.Query = []string{ocispec.MediaTypeImageIndex}, query
	body, resp, err := p.list(r.Context(), t, req, blockfmt.MaxManifestSize)
	var a *answer
	if errors.As(err, &a) && (a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed) {
		body, resp, err = p.referrersTag(r.Context(), t)
	}
	if err != nil {
		return err
	}
	if want := query.Get("artifactType"); want != "" && !strings.Contains(resp.Header.Get("OCI-Filters-Applied"), "artifactType") {
		if body, err = filterReferrers(body, want); err != nil {
			return fmt.Errorf("referrers of %s in %s/%s: %w", t.ref, t.host, t.repo, err)
		}
	}
	if query.Get("artifactType") != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	writeList(w, r, t, resp, body, ocispec.MediaTypeImageIndex)
	return nil
}

// list reads a registry's answer of at most limit bytes.
func (p *Proxy) list(ctx context.Context, t target, req Request, limit int64) ([]byte, *Response, error) {
	resp, err := p.cfg.Upstream.Do(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	if resp.Status != http.StatusOK {
		p.access.refused(t, resp)
		return nil, nil, passOn(resp, req)
	}
	defer resp.Body.Close()
	body, err := readBounded(resp, limit)
	if err != nil {
		return nil, nil, fmt.Errorf("%s of %s/%s: %w", t.kind, t.host, t.repo, err)
	}
	return body, resp, nil
}

func (p *Proxy) referrersTag(ctx context.Context, t target) ([]byte, *Response, error) {
	req := t.request(http.MethodGet, strings.Replace(t.ref, ":", "-", 1))
	req.Kind, req.Accept = "manifests", []string{ocispec.MediaTypeImageIndex}
	body, resp, err := p.list(ctx, t, req, blockfmt.MaxManifestSize)
	var a *answer
	if errors.As(err, &a) && a.status == http.StatusNotFound {
		empty := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
		empty.SchemaVersion = 2
		body, err = json.Marshal(empty)
		resp = &Response{Header: http.Header{}}
	}
	return body, resp, err
}

// filterReferrers keeps the manifests of one artifact type, and all other bytes of the list as they mean.
func filterReferrers(index []byte, artifactType string) ([]byte, error) {
	var fields map[string]json.RawMessage
	var manifests []json.RawMessage
	if err := errors.Join(json.Unmarshal(index, &fields), json.Unmarshal(fields["manifests"], &manifests)); err != nil {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrCorrupt)
	}
	left := []json.RawMessage{}
	for _, m := range manifests {
		var d ocispec.Descriptor
		if json.Unmarshal(m, &d) == nil && d.ArtifactType == artifactType {
			left = append(left, m)
		}
	}
	text, err := json.Marshal(left)
	if err != nil {
		return nil, err
	}
	fields["manifests"] = text
	return json.Marshal(fields)
}

func writeList(w http.ResponseWriter, r *http.Request, t target, resp *Response, body []byte, mediaType string) {
	h := w.Header()
	if link := rewriteLink(resp.Header.Get("Link"), t); link != "" {
		h.Set("Link", link)
	}
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may be gone
	}
}

// rewriteLink makes a registry's link to the next page one of this proxy: its query, at the path that the client used.
func rewriteLink(link string, t target) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok || !strings.Contains(strings.ReplaceAll(params, " ", ""), `rel="next"`) {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query := u.Query()
	query.Del("ns")
	if t.ns {
		query.Set("ns", t.host)
	}
	next := url.URL{Path: "/v2/" + t.repo + "/" + t.kind + "/" + t.ref, RawQuery: query.Encode()}
	return "<" + next.String() + `>; rel="next"`
}

func only(query url.Values, keys ...string) url.Values {
	out := url.Values{}
	for _, k := range keys {
		if v, ok := query[k]; ok {
			out[k] = v
		}
	}
	return out
}
