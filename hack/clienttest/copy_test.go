package clienttest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// skopeo returns a command that keeps nothing outside the test's directories.
func skopeo(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "skopeo", args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "XDG_RUNTIME_DIR="+t.TempDir())
	return cmd
}

// options of crane's library, without connections that outlive the test.
func options(t *testing.T) []remote.Option {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return []remote.Option{remote.WithContext(t.Context()), remote.WithTransport(transport)}
}

// readAll reads the images of an index, which the library compares with their digests.
func readAll(t *testing.T, index v1.ImageIndex) {
	t.Helper()
	manifest, err := index.IndexManifest()
	must(t, err)
	for _, m := range manifest.Manifests {
		img, err := index.Image(m.Digest)
		must(t, err)
		readImage(t, img)
	}
}

func readImage(t *testing.T, img v1.Image) {
	t.Helper()
	_, err := img.ConfigFile()
	must(t, err)
	layers, err := img.Layers()
	must(t, err)
	for _, l := range layers {
		body, err := l.Compressed()
		must(t, err)
		_, err = io.Copy(io.Discard, body)
		must(t, errors.Join(err, body.Close()))
	}
}

// TestCopyOfAllPlatforms: skopeo and crane get the index and both platforms' images as they are, the second from the proxy's disk.
func TestCopyOfAllPlatforms(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	ref := serveProxy(t, o.host) + "/app:1"
	dir := filepath.Join(t.TempDir(), "layout")
	run(t, skopeo(t, "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://"+ref, "oci:"+dir+":x"))
	copied, err := layout.ImageIndexFromPath(dir)
	must(t, err)
	manifest, err := copied.IndexManifest()
	must(t, err)
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest.String() != i.index.digest() {
		t.Fatalf("skopeo has %+v, want the index %s", manifest.Manifests, i.index.digest())
	}
	index, err := copied.ImageIndex(manifest.Manifests[0].Digest)
	must(t, err)
	readAll(t, index)

	tag, err := name.ParseReference(ref)
	must(t, err)
	again, err := remote.Index(tag, options(t)...)
	must(t, err)
	if d, err := again.Digest(); err != nil || d.String() != i.index.digest() {
		t.Errorf("crane has %s, %v", d, err)
	}
	readAll(t, again)
	o.wasRead(t, append(i.own, i.others...)...)
}

// TestOnePlatformOfMany: clients that want one platform get that one, and no more is read of the registry.
func TestOnePlatformOfMany(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	ref := serveProxy(t, o.host) + "/app:1"
	dir := t.TempDir()
	run(t, skopeo(t, "copy", "--override-arch", other.Architecture, "--src-tls-verify=false", "docker://"+ref, "dir:"+dir))
	for _, blob := range i.others {
		if _, err := os.Stat(filepath.Join(dir, strings.TrimPrefix(blob, "sha256:"))); err != nil {
			t.Errorf("skopeo: %v", err)
		}
	}
	img, err := crane.Pull(ref, crane.WithPlatform(&other), func(c *crane.Options) { c.Remote = append(c.Remote, options(t)...) })
	must(t, err)
	readImage(t, img)
	o.wasRead(t, i.others...)
}

const (
	sbomType = "application/vnd.example.sbom.v1"
	sbomText = `{"spdxVersion":"SPDX-2.3"}`
)

// pushSBOM puts an artifact that refers to the image's index into the registry.
func (i image) pushSBOM(t *testing.T, o *origin) manifest {
	t.Helper()
	repo := o.repository(t)
	layer := static.NewLayer([]byte(sbomText), "text/spdx+json")
	config := static.NewLayer([]byte("{}"), ocispec.MediaTypeEmptyJSON)
	for _, l := range []v1.Layer{layer, config} {
		must(t, remote.WriteLayer(repo, l, options(t)...))
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: sbomType, Config: ocispec.DescriptorEmptyJSON,
		Layers:  []ocispec.Descriptor{{MediaType: "text/spdx+json", Digest: digest.FromString(sbomText), Size: int64(len(sbomText))}},
		Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.Digest(i.index.digest()), Size: int64(len(i.index.text))}}
	m.Config.Data = nil
	m.SchemaVersion = 2
	sbom := newManifest(t, types.OCIManifestSchema1, m)
	must(t, remote.Put(repo.Digest(sbom.digest()), sbom, options(t)...))
	return sbom
}

// TestArtifacts: what refers to an image is found and read through the proxy, whatever it is.
func TestArtifacts(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	sbom := i.pushSBOM(t, o)
	want := sbom.digest()
	repo, err := name.NewRepository(serveProxy(t, o.host) + "/app")
	must(t, err)

	referrers, err := remote.Referrers(repo.Digest(i.index.digest()), options(t)...)
	must(t, err)
	list, err := referrers.IndexManifest()
	must(t, err)
	if len(list.Manifests) != 1 || list.Manifests[0].Digest.String() != want {
		t.Fatalf("referrers are %+v, want %s", list.Manifests, want)
	}
	found, err := remote.Get(repo.Digest(want), options(t)...)
	must(t, err)
	if !bytes.Equal(found.Manifest, sbom.text) {
		t.Errorf("crane has %s, want %s", found.Manifest, sbom.text)
	}
	layer, err := remote.Layer(repo.Digest(digest.FromString(sbomText).String()), options(t)...)
	must(t, err)
	body, err := layer.Compressed()
	must(t, err)
	text, err := io.ReadAll(body)
	must(t, err)
	must(t, body.Close())
	if string(text) != sbomText {
		t.Errorf("the document is %q", text)
	}

	dir := t.TempDir()
	run(t, skopeo(t, "copy", "--preserve-digests", "--src-tls-verify=false", "docker://"+repo.Name()+"@"+want, "dir:"+dir))
	if text, err := os.ReadFile(filepath.Join(dir, "manifest.json")); err != nil || !bytes.Equal(text, sbom.text) {
		t.Errorf("skopeo has %s, %v", text, err)
	}
	o.wasRead(t, digest.FromString(sbomText).String(), ocispec.DescriptorEmptyJSON.Digest.String())
}
