package clienttest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/hack/containerdtest"
)

// program says on which platform it is, by a file of the second layer.
const program = `package main

import (
	"fmt"
	"os"
)

func main() {
	text, err := os.ReadFile("/etc/platform")
	fmt.Println("hello from", string(text), err)
}
`

// other is a platform that this machine is not.
var other = v1.Platform{OS: "linux", Architecture: "s390x"}

// image is what the tests pull: an index of two platforms, whose images have a gzip and a zstd layer each.
type image struct {
	index       manifest
	images      []v1.Image
	own, others []string // digests of the blobs that this machine's image and that of the other platform have
}

// says is what its program prints here.
const says = "hello from linux/" + runtime.GOARCH + " <nil>\n"

func newImage(t *testing.T) image {
	t.Helper()
	path, err := containerdtest.BuildProgram(t.Context(), t.TempDir(), program)
	must(t, err)
	binary, err := os.ReadFile(path)
	must(t, err)
	own := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	mine, there := imageFor(t, own, binary), imageFor(t, other, []byte("for another machine"))
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{describe(t, there, other), describe(t, mine, own)}}
	return image{newManifest(t, types.OCIImageIndex, index), []v1.Image{there, mine}, blobsOf(t, mine), blobsOf(t, there)}
}

// describe returns an image's line in the index. The library's own has an artifact type, which Debian's skopeo would lose.
func describe(t *testing.T, img v1.Image, p v1.Platform) v1.Descriptor {
	t.Helper()
	d, err := partial.Descriptor(img)
	must(t, err)
	return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, Platform: &p}
}

// manifest is one as it is in the registry.
type manifest struct {
	text      []byte
	mediaType types.MediaType
}

func newManifest(t *testing.T, mediaType types.MediaType, content any) manifest {
	t.Helper()
	text, err := json.Marshal(content)
	must(t, err)
	return manifest{text, mediaType}
}

func (m manifest) RawManifest() ([]byte, error) { return m.text, nil }

func (m manifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

func (m manifest) digest() string { return digest.FromBytes(m.text).String() }

func imageFor(t *testing.T, p v1.Platform, binary []byte) v1.Image {
	t.Helper()
	plain, err := containerdtest.Image([]string{"/bin/program"}, map[string][]byte{"bin/program": binary}, map[string][]byte{"etc/platform": []byte(p.String())})
	must(t, err)
	layers, err := plain.Layers()
	must(t, err)
	gzip, err := tarball.LayerFromOpener(layers[0].Uncompressed, tarball.WithMediaType(types.OCILayer))
	must(t, err)
	zstd, err := tarball.LayerFromOpener(layers[1].Uncompressed, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	must(t, err)
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), gzip, zstd)
	must(t, err)
	config, err := img.ConfigFile()
	must(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Entrypoint = p.OS, p.Architecture, []string{"/bin/program"}
	img, err = mutate.ConfigFile(img, config)
	must(t, err)
	return img
}

// blobsOf returns the digests of an image's config and layers.
func blobsOf(t *testing.T, img v1.Image) []string {
	t.Helper()
	manifest, err := img.Manifest()
	must(t, err)
	blobs := []string{manifest.Config.Digest.String()}
	for _, l := range manifest.Layers {
		blobs = append(blobs, l.Digest.String())
	}
	return blobs
}

// push puts the image into a registry as app:1.
func (i image) push(t *testing.T, o *origin) {
	t.Helper()
	repo := o.repository(t)
	for _, img := range i.images {
		d, err := img.Digest()
		must(t, err)
		must(t, remote.Write(repo.Digest(d.String()), img, options(t)...))
	}
	must(t, remote.Put(repo.Tag("1"), i.index, options(t)...))
}

func (o *origin) repository(t *testing.T) name.Repository {
	t.Helper()
	repo, err := name.NewRepository(o.host + "/app")
	must(t, err)
	return repo
}

// document is a part of a file of the documentation: what is between fences behind a heading.
func document(t *testing.T, file, from, to string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", file))
	must(t, err)
	return between(t, string(text), from, to)
}
