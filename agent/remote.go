package agent

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

func newRegistry(cfg Config) (*registry.Client, error) {
	rc := registry.Config{Timeout: cfg.ReadTimeout.Duration, MaxConns: cfg.Connections, MaxStreams: cfg.Connections,
		MayDial: registryproxy.MayBeRegistry, Hosts: map[string]registry.HostConfig{}, Limit: int64(cfg.RegistryLimit), Logger: cfg.Log}
	for host, r := range cfg.Registries {
		if r.PlainHTTP {
			rc.PlainHTTP = append(rc.PlainHTTP, host)
		}
		if r.CA != "" {
			rc.TLS = append(rc.TLS, host)
		}
		pool, err := certPool(host, r)
		if err != nil {
			return nil, err
		}
		certificates, err := clientCertificates(host, r)
		if err != nil {
			return nil, err
		}
		for _, m := range r.Mirrors {
			if _, err := registryproxy.ParseHost(m); err != nil {
				return nil, fmt.Errorf("mirrors of registry %s: %w", host, err)
			}
		}
		rc.Hosts[host] = registry.HostConfig{RootCAs: pool, Certificates: certificates, Mirrors: r.Mirrors, Limit: int64(r.Limit)}
	}
	if cfg.CredentialProviderConfig != "" {
		var err error
		if rc.Plugins, err = registry.OpenPlugins(cfg.CredentialProviderConfig, cfg.CredentialProviderBinDir, cfg.Log); err != nil {
			return nil, err
		}
	}
	return registry.New(rc), nil
}

// certPool returns the system's certificates and the one configured for a registry, nil if there is none.
func certPool(host string, r RegistryConfig) (*x509.CertPool, error) {
	if r.CA == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(r.CA)
	if err != nil {
		return nil, fmt.Errorf("certificates of registry %s: %w", host, err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("certificates of registry %s: no PEM certificate in %s", host, r.CA)
	}
	return pool, nil
}

// resolve returns where ref's manifests and blobs are, and the manifest for this machine's platform.
func (a *agent) resolve(ctx context.Context, ref string) (origin, digest.Digest, error) {
	repo, desc, err := a.registry.Resolve(ctx, ref)
	if err != nil {
		return origin{}, "", err
	}
	o := origin{Ref: ref, Repository: repo.String()}
	if desc.MediaType != ocispec.MediaTypeImageIndex && desc.MediaType != "application/vnd.docker.distribution.manifest.list.v2+json" {
		return o, desc.Digest, nil
	}
	body, _, err := repo.Manifest(ctx, desc.Digest)
	if err != nil {
		return origin{}, "", err
	}
	var index ocispec.Index
	if err := json.Unmarshal(body, &index); err != nil {
		return origin{}, "", fmt.Errorf("index of %s: %w: %w", ref, err, blockfmt.ErrCorrupt)
	}
	here := platforms.Default()
	best := -1
	for i, m := range index.Manifests {
		if m.Platform != nil && here.Match(*m.Platform) && (best < 0 || here.Less(*m.Platform, *index.Manifests[best].Platform)) {
			best = i
		}
	}
	if best < 0 {
		return origin{}, "", fmt.Errorf("%s has no image for %s/%s: %w", ref, runtime.GOOS, runtime.GOARCH, blockfmt.ErrNotFound)
	}
	return o, index.Manifests[best].Digest, nil
}

// place returns where the blobs and manifests of an origin are.
func (a *agent) place(o origin) (place, error) {
	if o.Layout != "" {
		return layout{o.Layout}, nil
	}
	if o.Cluster != "" {
		return a.heldPlace(o)
	}
	return a.repository(o)
}

// heldPlace returns where a block image is that an agent of the cluster made.
func (a *agent) heldPlace(o origin) (place, error) {
	if a.cluster == nil {
		return nil, fmt.Errorf("the block image of %s is in a cluster that this agent has left: remove the image and pull it again: %w", o.Ref, blockfmt.ErrNotFound)
	}
	return held{a.cluster.made, o}, nil
}

// repository returns where an image is in its registry.
func (a *agent) repository(o origin) (place, error) {
	repo, err := a.registry.Repository(o.Repository)
	if err != nil {
		return nil, err
	}
	return repository{repo, a.metrics}, nil
}

// repository is a place in a registry that counts what is read.
type repository struct {
	repo    *registry.Repository
	metrics *metrics
}

func (r repository) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	return r.repo.Referrers(ctx, d, artifactType)
}

func (r repository) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	body, _, err := r.repo.Manifest(ctx, d)
	r.metrics.fetched(int64(len(body)), err)
	return body, err
}

// maxMetadataStored bounds, in bytes, the blobs that are read into memory as a whole: chunk indexes and metadata as stored.
const maxMetadataStored = 512 << 20

func (r repository) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	body, err := r.repo.Blob(ctx, desc, maxMetadataStored)
	r.metrics.fetched(int64(len(body)), err)
	return body, err
}

func (r repository) Range(ctx context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error) {
	body, err := r.repo.Range(ctx, blob, off, n)
	if err != nil {
		r.metrics.fetched(0, err)
		return nil, err
	}
	return &countedBody{ReadCloser: body, metrics: r.metrics}, nil
}

type countedBody struct {
	io.ReadCloser
	metrics *metrics
	n       int64
	err     error
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (c *countedBody) Close() error {
	c.metrics.fetched(c.n, c.err)
	return c.ReadCloser.Close()
}
