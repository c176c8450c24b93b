package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/agent/registry/registrytest"
	"github.com/xylem-project/xylem/blockfmt"
)

func manifestOf(t *testing.T, artifactType string, subject *ocispec.Descriptor, blobs ...ocispec.Descriptor) []byte {
	t.Helper()
	m, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: blobs[0], Layers: blobs[1:], Subject: subject,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDockerRegistry reads everything that the client can read from a real registry, one without the referrers API.
func TestDockerRegistry(t *testing.T) {
	host := registrytest.Start(t)
	c, _ := newClient(t, nil)
	config, blob := []byte("{}"), make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(blob)
	push(t, host, "blobs", "", "", config)
	push(t, host, "blobs", "", "", blob)
	manifest := manifestOf(t, "", nil, describe(config), describe(blob))
	push(t, host, "manifests", "v1", ocispec.MediaTypeImageManifest, manifest)

	repo, desc, err := c.Resolve(t.Context(), host+"/some/image:v1")
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if err != nil || desc.Digest != want.Digest || desc.Size != want.Size || desc.MediaType != want.MediaType {
		t.Fatalf("Resolve: %v, %v; want %v", desc, err, want)
	}
	if _, byDigest, err := c.Resolve(t.Context(), host+"/some/image@"+want.Digest.String()); err != nil || byDigest.Digest != want.Digest {
		t.Errorf("Resolve by digest: %v, %v", byDigest, err)
	}
	if _, _, err := c.Resolve(t.Context(), host+"/some/image:v2"); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("Resolve of an absent tag: %v, want ErrNotFound", err)
	}
	if got, typ, err := repo.Manifest(t.Context(), want.Digest); err != nil || !bytes.Equal(got, manifest) || typ != want.MediaType {
		t.Errorf("Manifest: %d bytes of type %s, %v", len(got), typ, err)
	}
	if got, err := repo.Blob(t.Context(), describe(blob), 4<<20); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("Blob: %d bytes, %v", len(got), err)
	}
	if _, err := repo.Blob(t.Context(), describe(blob), 1<<20); !errors.Is(err, blockfmt.ErrCorrupt) {
		t.Errorf("Blob beyond its limit: %v, want ErrCorrupt", err)
	}
	for _, r := range [][2]int64{{0, 1}, {100, 1 << 20}, {3<<20 - 1, 1}} {
		body, err := repo.Range(t.Context(), describe(blob).Digest, r[0], r[1])
		if err != nil {
			t.Errorf("Range %v: %v", r, err)
			continue
		}
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, blob[r[0]:r[0]+r[1]]) {
			t.Errorf("Range %v: %d bytes, %v", r, len(got), err)
		}
		_ = body.Close()
	}
	if _, err := repo.Range(t.Context(), describe(blob).Digest, 3<<20, 1); !errors.Is(err, blockfmt.ErrCorrupt) {
		t.Errorf("Range beyond the end: %v, want ErrCorrupt", err)
	}

	if list, err := repo.Referrers(t.Context(), want.Digest, "x/y"); err != nil || len(list) != 0 {
		t.Errorf("Referrers of nobody: %v, %v", list, err)
	}
	artifact := manifestOf(t, "x/y", &want, describe(config))
	push(t, host, "manifests", digest.FromBytes(artifact).String(), ocispec.MediaTypeImageManifest, artifact)
	entry, other := describe(artifact), describe(manifest)
	entry.MediaType, entry.ArtifactType, other.MediaType = ocispec.MediaTypeImageManifest, "x/y", ocispec.MediaTypeImageManifest
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other, entry}})
	if err != nil {
		t.Fatal(err)
	}
	push(t, host, "manifests", strings.Replace(want.Digest.String(), ":", "-", 1), ocispec.MediaTypeImageIndex, index)
	if list, err := repo.Referrers(t.Context(), want.Digest, "x/y"); err != nil || len(list) != 1 || list[0].Digest != entry.Digest {
		t.Errorf("Referrers: %v, %v; want %v", list, err, entry)
	}
}
