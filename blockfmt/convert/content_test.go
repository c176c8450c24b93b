package convert_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

// filesContent is the Content that is a layout's blobs.
type filesContent struct {
	dir       string
	mediaType string // of manifests; empty: none is said
}

func (c filesContent) Manifest(_ context.Context, d digest.Digest) ([]byte, string, error) {
	body, err := os.ReadFile(filepath.Join(c.dir, d.Encoded()))
	if err != nil {
		err = fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	return body, c.mediaType, err
}

func (c filesContent) Blob(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return os.Open(filepath.Join(c.dir, desc.Digest.Encoded()))
}

// An image becomes the same block image wherever its parts are read.
func TestOpenContent(t *testing.T) {
	l := newLayout(t)
	desc := l.image("v1", ocispec.MediaTypeImageManifest, amd64, source{tar: archive(t, file("a", "some text")), pack: gzipped, mediaType: ocispec.MediaTypeImageLayerGzip})
	want := converted(t, "oci:"+l.dir+":v1", convert.Options{})
	for _, mediaType := range []string{ocispec.MediaTypeImageManifest, ""} {
		src, err := convert.OpenContent(t.Context(), "registry.example/app", desc.Digest, filesContent{filepath.Join(l.dir, "blobs/sha256"), mediaType})
		must(t, err)
		r, err := convert.Convert(t.Context(), src, convert.Options{})
		must(t, err)
		if got := digest.FromBytes(r.Manifest); got != digest.FromBytes(want.Manifest) {
			t.Errorf("another block image: %s", got)
		}
		must(t, r.Close())
	}
}

func TestOpenContentRefuses(t *testing.T) {
	l := newLayout(t)
	desc := l.image("v1", ocispec.MediaTypeImageManifest, amd64, source{tar: archive(t, file("a", "some text")), pack: gzipped, mediaType: ocispec.MediaTypeImageLayerGzip})
	content := filesContent{filepath.Join(l.dir, "blobs/sha256"), ""}
	refuses := func(what string, d digest.Digest, kind string) {
		t.Helper()
		_, err := convert.OpenContent(t.Context(), "registry.example/app", d, content)
		if err == nil || !strings.Contains(err.Error(), kind) {
			t.Errorf("%s: %v, want %q", what, err, kind)
		}
	}
	refuses("no digest", "sha256:12", blockfmt.ErrCorrupt.Error())
	refuses("nothing there", digest.FromString("x"), blockfmt.ErrNotFound.Error())
	must(t, os.WriteFile(l.path(desc.Digest), []byte("{}"), 0o644))
	refuses("other bytes", desc.Digest, "hashes to")
}
