package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// Manifest is a manifest, index or artifact as its registry gave it.
type Manifest struct {
	MediaType string
	Body      []byte
}

// Manifests keeps manifests by digest. Safe for concurrent use.
type Manifests interface {
	// Manifest returns a manifest that is kept, verified, or blockfmt.ErrNotFound.
	Manifest(d digest.Digest) (Manifest, error)
	// KeepManifest keeps one that was verified.
	KeepManifest(d digest.Digest, m Manifest) error
}

// tagKey: what a tag names may depend on what the client accepts.
type tagKey struct{ Host, Repo, Tag, Accept string }

// accepted is asked for on behalf of a client that does not say what it accepts: old registries convert manifests otherwise.
var accepted = []string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
}

// manifest answers end-3.
func (p *Proxy) manifest(w http.ResponseWriter, r *http.Request, t target) error {
	if len(t.accept) == 0 || len(t.accept) == 1 && t.accept[0] == "*/*" {
		t.accept = accepted
	}
	ctx := r.Context()
	d := digest.Digest(t.ref)
	var err error
	if !strings.Contains(t.ref, ":") {
		if d, err = p.resolve(ctx, t); err != nil {
			return err
		}
	}
	m, err := p.manifestOf(ctx, t, d)
	if err != nil {
		return err
	}
	h, etag := w.Header(), `"`+d.String()+`"`
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", etag)
	if matches(r.Header.Get("If-None-Match"), etag, true) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", m.MediaType)
	h.Set("Content-Length", strconv.Itoa(len(m.Body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(m.Body) // the client may be gone
		p.cfg.Pulled(Pull{t.host, t.repo, t.ref, d, m})
	}
	return nil
}

// resolve returns what a tag names, for a client that may know it.
func (p *Proxy) resolve(ctx context.Context, t target) (d digest.Digest, err error) {
	key := tagKey{t.host, t.repo, t.ref, strings.Join(t.accept, ",")}
	if known, _ := p.tag(key, t, p.cfg.TagTTL, p.cfg.GrantTTL); known != "" {
		return known, nil
	}
	stale, age := p.tag(key, t, p.cfg.TagTTL+p.cfg.OfflineFor, p.cfg.GrantTTL+p.cfg.OfflineFor)
	credential := p.access.hash(t.authorization)
	question := strings.Join([]string{t.host, t.repo, t.ref, key.Accept, string(credential[:])}, " ")
	err = p.access.unlessDown(ctx, t.host, p.access.waitFor(t, stale != ""), func(ctx context.Context) (err error) {
		d, err = p.resolving.do(ctx, p.access.background, question, func(ctx context.Context) (digest.Digest, error) {
			if d, _ := p.tag(key, t, p.cfg.TagTTL, p.cfg.GrantTTL); d != "" { // answered a moment ago
				return d, nil
			}
			d, err := p.resolveUpstream(ctx, t)
			if err == nil {
				p.tags.set(key, d)
			}
			return d, err
		})
		return err
	})
	if stale != "" && errors.Is(err, blockfmt.ErrTransient) {
		p.cfg.Log.Info("registry does not answer, the tag is believed to be as it was", "registry", t.host, "repository", t.repo, "tag", t.ref, "age", age)
		return stale, nil
	}
	return d, err
}

// tag returns what a tag named within a time, for a client whose credentials were accepted within another; "" if that is not known.
func (p *Proxy) tag(key tagKey, t target, within, granted time.Duration) (digest.Digest, time.Duration) {
	known, ok := p.tags.get(key)
	if !ok || known.age() >= within || !p.access.granted(t, granted) {
		return "", 0
	}
	return known.value, known.age()
}

// resolveUpstream asks the registry. A registry that does not say the digest is asked for the manifest.
func (p *Proxy) resolveUpstream(ctx context.Context, t target) (digest.Digest, error) {
	req := t.request(http.MethodHead, t.ref)
	resp, err := p.cfg.Upstream.Do(ctx, req)
	if err != nil {
		return "", err
	}
	if resp.Status != http.StatusOK && resp.Status != http.StatusMethodNotAllowed {
		p.access.refused(t, resp)
		return "", passOn(resp, req)
	}
	_ = resp.Body.Close() // of a HEAD
	d, err := parseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		_, d, err = p.readManifest(ctx, t, "")
		return d, err
	}
	p.access.note(t, t.kind, d, member{mediaType(resp), resp.Length})
	return d, nil
}

// manifestOf returns a manifest for a client that may have it: from disk, or from the registry and then kept.
func (p *Proxy) manifestOf(ctx context.Context, t target, d digest.Digest) (Manifest, error) {
	m, err := p.keptManifest(ctx, t, d)
	if !errors.Is(err, errNotKept) {
		return m, err
	}
	k := p.access.grantKey(t)
	key := strings.Join([]string{t.host, t.repo, d.String(), string(k.Credential[:])}, " ")
	return p.reading.do(ctx, p.access.background, key, func(ctx context.Context) (Manifest, error) {
		m, err := p.keptManifest(ctx, t, d) // by one who asked a moment before
		if errors.Is(err, errNotKept) {
			m, _, err = p.readManifest(ctx, t, d)
		}
		return m, err
	})
}

// errNotKept is not the registry's word.
var errNotKept = errors.New("manifest is not kept")

// keptManifest returns a manifest from disk, for a client that may have it, or errNotKept.
func (p *Proxy) keptManifest(ctx context.Context, t target, d digest.Digest) (Manifest, error) {
	m, err := p.cfg.Manifests.Manifest(d)
	if err != nil {
		if !errors.Is(err, blockfmt.ErrNotFound) {
			p.cfg.Log.Warn("kept manifest cannot be read, it is fetched again", "manifest", d, "error", err)
		}
		return m, errNotKept
	}
	stat, err := p.access.stat(ctx, t, d)
	if err != nil {
		return Manifest{}, err
	}
	if m.MediaType == "" {
		m.MediaType = stat.MediaType
	}
	p.counters.ManifestHits.Add(1)
	return m, nil
}

// readManifest reads a manifest from the registry, by digest or, if that is "", by t's tag, and keeps it before anybody gets to
// know its digest: a tag must not lead to a digest that cannot be had.
func (p *Proxy) readManifest(ctx context.Context, t target, want digest.Digest) (Manifest, digest.Digest, error) {
	req := t.request(http.MethodGet, t.ref)
	if want != "" {
		req.Ref = want.String()
	}
	for {
		m, from, err := p.getManifest(ctx, t, req)
		if err != nil {
			return Manifest{}, "", err
		}
		d := want
		if d == "" {
			d = digest.FromBytes(m.Body)
		}
		if d.Algorithm().FromBytes(m.Body) != d {
			p.cfg.Log.Warn("wrong bytes of a manifest are thrown away", "manifest", d, "from", from)
			if len(req.Avoid) > 0 && req.Avoid[len(req.Avoid)-1] == from {
				return Manifest{}, "", fmt.Errorf("manifest %s of %s/%s: got other bytes: %w", d, t.host, t.repo, blockfmt.ErrCorrupt)
			}
			req.Avoid = append(req.Avoid, from)
			continue
		}
		p.counters.ManifestMisses.Add(1)
		p.access.note(t, t.kind, d, member{m.MediaType, int64(len(m.Body))})
		if err := p.cfg.Manifests.KeepManifest(d, m); err != nil {
			p.cfg.Log.Warn("manifest is not kept", "manifest", d, "error", err)
		}
		return m, d, nil
	}
}

func (p *Proxy) getManifest(ctx context.Context, t target, req Request) (m Manifest, from string, err error) {
	resp, err := p.cfg.Upstream.Do(ctx, req)
	if err != nil {
		return m, "", err
	}
	if resp.Status != http.StatusOK {
		p.access.refused(t, resp)
		return m, "", passOn(resp, req)
	}
	defer resp.Body.Close()
	body, err := readBounded(resp, blockfmt.MaxManifestSize)
	if err != nil {
		return m, "", fmt.Errorf("manifest %s of %s/%s from %s: %w", req.Ref, t.host, t.repo, resp.From, err)
	}
	return Manifest{mediaType(resp), body}, resp.From, nil
}

// readBounded reads a body of at most limit bytes; more is ErrCorrupt, and not read.
func readBounded(resp *Response, limit int64) ([]byte, error) {
	if resp.Length > limit {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", resp.Length, limit, blockfmt.ErrCorrupt)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err == io.ErrUnexpectedEOF:
		return nil, fmt.Errorf("it ends early: %w", blockfmt.ErrTransient)
	case err == nil && int64(len(body)) > limit:
		return nil, fmt.Errorf("more than %d bytes: %w", limit, blockfmt.ErrCorrupt)
	}
	return body, err
}
