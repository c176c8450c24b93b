package convert_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// layout is an OCI image layout under construction.
type layout struct {
	t     testing.TB
	dir   string
	index ocispec.Index
}

func newLayout(t testing.TB) *layout {
	l := &layout{t: t, dir: filepath.Join(t.TempDir(), "layout")}
	l.index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	must(t, os.MkdirAll(filepath.Join(l.dir, "blobs/sha256"), 0o755))
	must(t, os.WriteFile(filepath.Join(l.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return l
}

func (l *layout) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	must(l.t, os.WriteFile(l.path(d.Digest), data, 0o644))
	return d
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs/sha256", d.Encoded())
}

func (l *layout) json(mediaType string, v any) ocispec.Descriptor {
	data, err := json.Marshal(v)
	must(l.t, err)
	return l.blob(mediaType, data)
}

// source is a layer as a builder would put it into an image.
type source struct {
	tar       []byte
	pack      func(testing.TB, []byte) []byte
	mediaType string
	diffID    digest.Digest // if not the true one
}

// image adds an image to the layout; tag may be empty.
func (l *layout) image(tag, mediaType string, platform ocispec.Platform, layers ...source) ocispec.Descriptor {
	config := ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Cmd = []string{"/bin/true"}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType}
	for _, s := range layers {
		if s.pack == nil {
			s.pack, s.mediaType = gzipped, ocispec.MediaTypeImageLayerGzip
		}
		if s.diffID == "" {
			s.diffID = digest.FromBytes(s.tar)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, s.diffID)
		m.Layers = append(m.Layers, l.blob(s.mediaType, s.pack(l.t, s.tar)))
	}
	configType := ocispec.MediaTypeImageConfig
	if mediaType == dockerManifest {
		configType = dockerConfig
	}
	m.Config = l.json(configType, config)
	d := l.json(mediaType, m)
	l.tag(tag, d)
	return d
}

func (l *layout) tag(tag string, d ocispec.Descriptor) {
	if tag == "" {
		return
	}
	d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	l.index.Manifests = append(l.index.Manifests, d)
	data, err := json.Marshal(l.index)
	must(l.t, err)
	must(l.t, os.WriteFile(filepath.Join(l.dir, "index.json"), data, 0o644))
}

// simple makes a layout with one image of these gzip layers and returns the reference of it.
func simple(t testing.TB, layers ...[]byte) string {
	l := newLayout(t)
	var s []source
	for _, data := range layers {
		s = append(s, source{tar: data})
	}
	l.image("v1", ocispec.MediaTypeImageManifest, amd64, s...)
	return "oci:" + l.dir + ":v1"
}

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

func gzipped(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(data, nil)
}

func plain(_ testing.TB, data []byte) []byte { return data }

// entry is a tar entry.
type entry struct {
	tar.Header
	data []byte
}

var someTime = time.Unix(1700000000, 123456789)

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: someTime, Format: tar.FormatPAX}, []byte(data)}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: someTime, Format: tar.FormatPAX}, nil}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777, ModTime: someTime, Format: tar.FormatPAX}, nil}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink, Mode: 0o644, ModTime: someTime, Format: tar.FormatPAX}, nil}
}

func archive(t testing.TB, entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(t, w.WriteHeader(&e.Header))
		_, err := w.Write(e.data)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// open opens an image source that must be good.
func open(t testing.TB, ref string) *convert.Source {
	t.Helper()
	src, err := convert.Open(context.Background(), ref, "linux/amd64", convert.Registry{})
	must(t, err)
	return src
}

// converted converts an image that must be good. The result is closed at the end of the test.
func converted(t testing.TB, ref string, opts convert.Options) *convert.Result {
	t.Helper()
	if opts.TempDir == "" {
		opts.TempDir = t.TempDir()
	}
	r, err := convert.Convert(context.Background(), open(t, ref), opts)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// view reads files of a block image through its metadata image, its chunk indexes and its blobs.
type view struct {
	t       testing.TB
	tree    *metadata.Tree
	devices [][]byte // uncompressed
}

func viewOf(t testing.TB, r *convert.Result) *view {
	t.Helper()
	a, err := blockfmt.ParseArtifact(r.Manifest, r.Config)
	must(t, err)
	v := &view{t: t, tree: readTree(t, r, a.Metadata)}
	for _, l := range a.Layers {
		v.devices = append(v.devices, deviceOf(t, r, l))
	}
	return v
}

// deviceOf reads a blob through its chunk index.
func deviceOf(t testing.TB, r *convert.Result, l blockfmt.Layer) []byte {
	t.Helper()
	index, err := blockfmt.DecodeIndex(blobOf(t, r, l.Index), l.Blob.Digest, l.Blob.Size)
	must(t, err)
	stored := blobOf(t, r, l.Blob)
	image := blockfmt.NewImage(index, blockfmt.SourceFunc(func(_ context.Context, ref blockfmt.Ref) ([]byte, error) {
		return stored[ref.Offset : ref.Offset+ref.Length], nil
	}))
	raw := make([]byte, image.Size())
	_, err = image.ReadAt(context.Background(), raw, 0)
	must(t, err)
	return raw
}

// blobOf returns a blob of a result, checked against its descriptor.
func blobOf(t testing.TB, r *convert.Result, d ocispec.Descriptor) []byte {
	t.Helper()
	rc, err := r.Blob(d.Digest)
	must(t, err)
	defer rc.Close()
	data, err := io.ReadAll(rc)
	must(t, err)
	if digest.FromBytes(data) != d.Digest || int64(len(data)) != d.Size {
		t.Fatalf("blob is %d bytes with digest %s, descriptor says %d and %s", len(data), digest.FromBytes(data), d.Size, d.Digest)
	}
	return data
}

func readTree(t testing.TB, r *convert.Result, d ocispec.Descriptor) *metadata.Tree {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(blobOf(t, r, d)))
	must(t, err)
	defer z.Close()
	raw, err := io.ReadAll(z)
	must(t, err)
	if got := digest.FromBytes(raw).String(); got != d.Annotations[blockfmt.AnnotationUncompressedDigest] {
		t.Fatalf("metadata image expands to %s, annotation says %s", got, d.Annotations[blockfmt.AnnotationUncompressedDigest])
	}
	tree, err := metadata.Read(bytes.NewReader(raw), int64(len(raw)))
	must(t, err)
	return tree
}

// inode returns what path names, which must exist.
func (v *view) inode(path string) *metadata.Inode {
	v.t.Helper()
	in := v.tree.Lookup(path)
	if in == nil {
		v.t.Fatalf("%q is not in the image", path)
	}
	return in
}

// read returns the content of a regular file.
func (v *view) read(path string) []byte {
	v.t.Helper()
	return v.data(v.inode(path))
}

func (v *view) data(in *metadata.Inode) []byte {
	v.t.Helper()
	data := make([]byte, in.Size)
	for _, e := range in.Extents {
		if e.FileOffset%blockfmt.PageSize != 0 || e.DeviceOffset%blockfmt.PageSize != 0 {
			v.t.Fatalf("extent %+v is not aligned", e)
		}
		n := min(e.Length, in.Size-e.FileOffset)
		copy(data[e.FileOffset:], v.devices[e.Device][e.DeviceOffset:e.DeviceOffset+n])
	}
	return data
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// decode reads a JSON blob of the layout.
func (l *layout) decode(d ocispec.Descriptor, v any) {
	data, err := os.ReadFile(l.path(d.Digest))
	must(l.t, err)
	must(l.t, json.Unmarshal(data, v))
}

// sparseLayer is the torture image's sparse layer, of a file larger than any limit used in tests.
func sparseLayer(w io.Writer) error {
	for _, l := range blocktest.TortureLayers() {
		if l.Name == "sparse" {
			return l.Write(w)
		}
	}
	return nil
}
