package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

// maxIndexSize bounds, in bytes, the chunk indexes and configs that inspect reads.
const maxIndexSize = 256 << 20

// imageStore is where images lie: a registry's repository or an OCI layout. What it returns matches the digest asked for.
type imageStore interface {
	manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// referrers lists the manifests whose subject is d, in any order.
	referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
}

// openStore finds what ref names; the caller calls close.
func (a *app) openStore(ctx context.Context, ref string) (store imageStore, desc ocispec.Descriptor, closeStore func(), err error) {
	if path, ok := strings.CutPrefix(ref, "oci:"); ok {
		l, desc, err := openLayout(path)
		return l, desc, func() {}, err
	}
	client, err := a.registryClient()
	if err != nil {
		return nil, desc, nil, err
	}
	repo, desc, err := client.Resolve(ctx, ref)
	if err != nil {
		client.Close()
		return nil, desc, nil, err
	}
	return repository{repo}, desc, func() { client.Close() }, nil
}

func (a *app) registryClient() (*registry.Client, error) {
	config := registry.Config{UserAgent: "xylem/" + version}
	for host, settings := range a.config.Registries {
		if settings.PlainHTTP {
			config.PlainHTTP = append(config.PlainHTTP, host)
		}
		if settings.CA != "" {
			pool, err := certPool(settings.CA)
			if err != nil {
				return nil, err
			}
			config.RootCAs, config.TLS = pool, append(config.TLS, host)
		}
	}
	var err error
	if config.Plugins, err = a.plugins(); err != nil {
		return nil, err
	}
	return registry.New(config), nil
}

// repository is an imageStore in a registry.
type repository struct{ repo *registry.Repository }

func (r repository) manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	body, _, err := r.repo.Manifest(ctx, d)
	return body, err
}

func (r repository) blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return r.repo.Blob(ctx, desc, maxIndexSize)
}

func (r repository) referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	return r.repo.Referrers(ctx, d, "")
}

// layout is an imageStore in an OCI image layout.
type layout struct {
	dir   string
	index ocispec.Index
}

// openLayout opens "DIR:TAG", or "DIR" if it holds one image besides block images.
func openLayout(path string) (*layout, ocispec.Descriptor, error) {
	dir, tag := path, ""
	if i := strings.LastIndexByte(path, ':'); i > 0 && !strings.Contains(path[i:], "/") {
		dir, tag = path[:i], path[i+1:]
	}
	l := &layout{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("OCI layout: %w", err)
	}
	if err := json.Unmarshal(text, &l.index); err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("OCI layout %s: %w: %w", dir, err, blockfmt.ErrCorrupt)
	}
	for _, desc := range l.index.Manifests {
		if tag != "" && desc.Annotations[ocispec.AnnotationRefName] == tag || tag == "" && desc.ArtifactType != blockfmt.CompanionType {
			return l, desc, nil
		}
	}
	return nil, ocispec.Descriptor{}, fmt.Errorf("OCI layout %s has no image %q: %w", dir, tag, blockfmt.ErrNotFound)
}

func (l *layout) manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest %.80q: %w", d, blockfmt.ErrCorrupt)
	}
	data, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	if err == nil && d.Algorithm().FromBytes(data) != d {
		err = fmt.Errorf("%s in %s does not match its digest: %w", d, l.dir, blockfmt.ErrCorrupt)
	}
	return data, err
}

func (l *layout) blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return l.manifest(ctx, desc.Digest)
}

func (l *layout) referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	for _, desc := range l.index.Manifests {
		body, err := l.manifest(ctx, desc.Digest)
		if err != nil {
			return nil, err
		}
		var m ocispec.Manifest
		if json.Unmarshal(body, &m) == nil && m.Subject != nil && m.Subject.Digest == d {
			found = append(found, desc)
		}
	}
	return found, nil
}
