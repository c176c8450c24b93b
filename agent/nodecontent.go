package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/registryproxy"
)

// nodeContent is the convert.Content of an image on this node: what the proxy keeps or is fetching for clients, and the rest from the registry
// with the node's own credentials, by way of the proxy, so that who pulls the image at the same time reads it once. Credentials of clients
// are not used.
type nodeContent struct {
	kept    plainStore
	repo    *registry.Repository
	refused error                    // why this node may not read the image in its registry
	proxy   *registryproxy.Downloads // nil: there is none
	where   registryproxy.Blob       // for proxy, without digest and size
}

// content returns where an image is read to be converted. Whether this node may read it is asked first: a client that joins a download which the
// registry refuses would be refused too.
func (a *agent) content(ctx context.Context, o origin, source digest.Digest) (convert.Content, error) {
	repo, err := a.registry.Repository(o.Repository)
	if err != nil {
		return nil, err
	}
	c := nodeContent{kept: plainStore{a.cache}, repo: repo}
	_, _, c.refused = a.registry.Resolve(ctx, o.Repository+"@"+source.String())
	if a.proxy != nil {
		host, path, _ := strings.Cut(o.Repository, "/")
		if host, err = registryproxy.ParseHost(host); err != nil {
			return nil, err
		}
		c.proxy, c.where = a.proxy.downloads, registryproxy.Blob{Host: host, Repo: path, Own: true}
	}
	return c, nil
}

// Manifest implements convert.Content.
func (c nodeContent) Manifest(ctx context.Context, d digest.Digest) ([]byte, string, error) {
	if m, err := c.kept.Manifest(d); err == nil {
		return m.Body, m.MediaType, nil
	}
	if c.refused != nil {
		return nil, "", c.refused
	}
	return c.repo.Manifest(ctx, d)
}

// Blob implements convert.Content.
func (c nodeContent) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if f, err := c.kept.Open(desc.Digest); err == nil {
		return f, nil
	}
	if c.proxy == nil || desc.Size <= 0 {
		return c.alone(ctx, desc)
	}
	b := c.where
	b.Digest, b.Size = desc.Digest, desc.Size
	content, err := c.proxy.Join(b.Digest, b.Size)
	if err != nil && c.refused == nil {
		content, err = c.proxy.Open(ctx, b)
	}
	if err != nil {
		return c.alone(ctx, desc)
	}
	return &arrivingBlob{ctx: ctx, content: content, size: desc.Size}, nil
}

// alone reads a blob past the proxy.
func (c nodeContent) alone(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if c.refused != nil {
		return nil, c.refused
	}
	return c.repo.Range(ctx, desc.Digest, 0, desc.Size)
}

// arrivingBlob reads a blob from its beginning while it arrives.
type arrivingBlob struct {
	ctx     context.Context
	content registryproxy.Content
	size    int64
	off     int64
	ready   int64 // bytes from off on that are here
}

func (b *arrivingBlob) Read(p []byte) (int, error) {
	if b.off == b.size {
		return 0, io.EOF
	}
	if b.ready == 0 {
		n, err := b.content.Ready(b.ctx, b.off)
		if err != nil {
			return 0, err
		}
		b.ready = n
	}
	n, err := b.content.ReadAt(p[:min(int64(len(p)), b.ready)], b.off)
	b.off, b.ready = b.off+int64(n), b.ready-int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (b *arrivingBlob) Close() error { return b.content.Close() }

// pulled queues the conversion of an image whose manifest a client of the proxy got.
func (a *agent) pulled(p registryproxy.Pull) {
	if a.converter == nil || !isImage(p.Manifest.Body) {
		return
	}
	repo, err := a.registry.Repository(p.Host + "/" + p.Repo)
	if err != nil {
		return
	}
	ref := repo.String() + ":" + p.Ref
	if strings.Contains(p.Ref, ":") {
		ref = repo.String() + "@" + p.Ref
	}
	a.converter.queue(job{origin: origin{Ref: ref, Repository: repo.String()}, source: p.Digest, proxied: true})
}

// isImage says whether a manifest is that of an image that could be converted: no index, artifact or block image.
func isImage(manifest []byte) bool {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil || m.ArtifactType != "" || len(m.Layers) == 0 {
		return false
	}
	return m.Config.MediaType == ocispec.MediaTypeImageConfig || m.Config.MediaType == "application/vnd.docker.container.image.v1+json"
}

// pushBlockImage puts a block image into the repository of its source, with the node's credentials.
func (a *agent) pushBlockImage(ctx context.Context, o origin, r *convert.Result) error {
	host, _, _ := strings.Cut(o.Repository, "/")
	reg, err := pushRegistry(host, a.cfg.Registries[host])
	if err != nil {
		return err
	}
	return r.Push(ctx, o.Repository, "", reg)
}

// pushRegistry says how the converter reaches a registry.
func pushRegistry(host string, rc RegistryConfig) (convert.Registry, error) {
	pool, err := certPool(host, rc)
	certificates, e := clientCertificates(host, rc)
	if err = errors.Join(err, e); err != nil {
		return convert.Registry{}, fmt.Errorf("push: %w", err)
	}
	if pool == nil && certificates == nil {
		return convert.Registry{PlainHTTP: rc.PlainHTTP}, nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: certificates, MinVersion: tls.VersionTLS12}
	return convert.Registry{PlainHTTP: rc.PlainHTTP, Transport: transport}, nil
}

var _ convert.Content = nodeContent{}

// hasBlockImage says whether there is a block image of a source that this node would use, on it or elsewhere.
func (a *agent) hasBlockImage(ctx context.Context, o origin, source digest.Digest) bool {
	if a.images.has(source) {
		return true
	}
	found, err := a.images.discovery.has(ctx, o, source)
	if err != nil && !errors.Is(err, blockfmt.ErrNotFound) {
		a.cfg.Log.Debug("no look for a block image", "source", source, "err", err)
	}
	return found
}
