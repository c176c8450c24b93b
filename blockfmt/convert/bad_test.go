package convert_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

// refused converts an image and checks that it fails with kind, in one line, and leaves nothing in the temporary directory.
func refused(t *testing.T, ref string, kind error, opts convert.Options) {
	t.Helper()
	if opts.TempDir == "" {
		opts.TempDir = t.TempDir()
	}
	src, err := convert.Open(context.Background(), ref, "linux/amd64", convert.Registry{})
	if err == nil {
		var r *convert.Result
		if r, err = convert.Convert(context.Background(), src, opts); err == nil {
			r.Close()
		}
	}
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
	}
	if err != nil && (strings.ContainsAny(err.Error(), "\n\r\x00") || len(err.Error()) > 2000) {
		t.Errorf("error is not one line: %q", err)
	}
	left, err := os.ReadDir(opts.TempDir)
	must(t, err)
	for _, e := range left {
		t.Errorf("left behind: %s", e.Name())
	}
}

func TestRefusesBadArchives(t *testing.T) {
	deep := strings.Repeat("d/", 2040)
	device := func(h tar.Header) entry {
		h.Mode, h.Format = 0o600, tar.FormatGNU
		return entry{h, nil}
	}
	for name, c := range map[string]struct {
		kind    error
		entries []entry
	}{
		"long name":             {blockfmt.ErrCorrupt, []entry{file(strings.Repeat("x", 256), "")}},
		"long parent":           {blockfmt.ErrCorrupt, []entry{file(strings.Repeat("x", 256)+"/y", "")}},
		"long path":             {blockfmt.ErrCorrupt, []entry{file(strings.Repeat("d/", 2100)+"x", "")}},
		"deep by link":          {blockfmt.ErrCorrupt, []entry{symlink("s", deep), file("s/"+deep+"x", "")}},
		"link loop":             {blockfmt.ErrCorrupt, []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}},
		"link to itself":        {blockfmt.ErrCorrupt, []entry{symlink("a", "a"), file("a/x", "")}},
		"link that grows":       {blockfmt.ErrCorrupt, []entry{symlink("a", "a/a"), file("a/x", "")}},
		"parent is a file":      {blockfmt.ErrCorrupt, []entry{file("a", ""), file("a/x", "")}},
		"hard link to dir":      {blockfmt.ErrCorrupt, []entry{dir("a"), hardlink("b", "a")}},
		"hard link to root":     {blockfmt.ErrCorrupt, []entry{hardlink("b", "/")}},
		"hard link to itself":   {blockfmt.ErrCorrupt, []entry{file("a", ""), hardlink("a", "a")}},
		"hard link to nothing":  {blockfmt.ErrCorrupt, []entry{hardlink("a", "nowhere")}},
		"whiteout of nothing":   {blockfmt.ErrCorrupt, []entry{file(".wh.", "")}},
		"whiteout of parent":    {blockfmt.ErrCorrupt, []entry{file("a/.wh...", "")}},
		"whiteout of directory": {blockfmt.ErrCorrupt, []entry{file("a/.wh..", "")}},
		"long symbolic link":    {blockfmt.ErrCorrupt, []entry{symlink("a", strings.Repeat("t", 4096))}},
		"empty symbolic link":   {blockfmt.ErrCorrupt, []entry{symlink("a", "")}},
		"huge attribute":        {blockfmt.ErrCorrupt, []entry{{tar.Header{Name: "a", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 65536)}}, nil}}},
		"negative owner":        {blockfmt.ErrCorrupt, []entry{device(tar.Header{Name: "a", Typeflag: tar.TypeReg, Uid: -2})}},
		"owner of 33 bits":      {blockfmt.ErrCorrupt, []entry{device(tar.Header{Name: "a", Typeflag: tar.TypeReg, Gid: 1 << 32})}},
		"device of 33 bits":     {blockfmt.ErrCorrupt, []entry{device(tar.Header{Name: "a", Typeflag: tar.TypeChar, Devmajor: 1 << 32})}},
		"continuous file":       {blockfmt.ErrUnsupported, []entry{device(tar.Header{Name: "a", Typeflag: tar.TypeCont})}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, simple(t, archive(t, c.entries...)), c.kind, convert.Options{}) })
	}
}

// Paths that try to leave the root end up within it.
func TestConfinesPaths(t *testing.T) {
	r := converted(t, simple(t, archive(t,
		file("../../../etc/dots", "1"), file("/etc/slash", "2"), file("a/../../../etc/within", "3"),
		symlink("out", "../../../.."), file("out/etc/through", "4"), symlink("abs", "/etc"), file("abs/absolute", "5"),
		symlink("proc", "/../proc/../etc"), file("proc/dotted", "6"), file("..", "x"), file("a/..", "x"), file(".", "x"),
		hardlink("hard", "../../etc/dots"),
	)), convert.Options{})
	v := viewOf(t, r)
	for path, want := range map[string]string{
		"etc/dots": "1", "etc/slash": "2", "etc/within": "3", "etc/through": "4", "etc/absolute": "5", "etc/dotted": "6", "hard": "1",
	} {
		if in := v.tree.Lookup(path); in == nil || string(v.data(in)) != want {
			t.Errorf("%s is not %q", path, want)
		}
	}
	if names := len(v.tree.Root.Entries); names != 5 {
		t.Errorf("root has %d entries, want etc, out, abs, proc, hard", names)
	}
}

func TestRefusesWrongDiffID(t *testing.T) {
	good, other := archive(t, file("a", "good")), archive(t, file("a", "other"))
	for _, pack := range []func(testing.TB, []byte) []byte{gzipped, zstded, plain} {
		l := newLayout(t)
		l.image("v1", ocispec.MediaTypeImageManifest, amd64,
			source{tar: good, pack: pack, mediaType: ocispec.MediaTypeImageLayer, diffID: digest.FromBytes(other)})
		refused(t, "oci:"+l.dir+":v1", blockfmt.ErrCorrupt, convert.Options{})
	}
}

// Every way in which the bytes of a layer can be wrong.
func TestRefusesDamagedLayers(t *testing.T) {
	noise := make([]byte, 200_000)
	_, err := rand.Read(noise)
	must(t, err)
	data := archive(t, file("a", string(noise)))
	flip := func(b []byte, at int) []byte { b = bytes.Clone(b); b[at] ^= 0x40; return b }
	for _, pack := range []func(testing.TB, []byte) []byte{gzipped, zstded, plain} {
		whole := pack(t, data)
		for name, damaged := range map[string][]byte{
			"truncated":        whole[:len(whole)/2],
			"one byte short":   whole[:len(whole)-1],
			"longer":           append(bytes.Clone(whole), 'x'),
			"flipped":          flip(whole, len(whole)/2),
			"flipped at start": flip(whole, 3),
			"nothing":          {},
		} {
			l := newLayout(t)
			l.image("v1", ocispec.MediaTypeImageManifest, amd64, source{tar: data, pack: pack, mediaType: ocispec.MediaTypeImageLayerGzip})
			must(t, os.WriteFile(l.path(digest.FromBytes(whole)), damaged, 0o644))
			t.Run(name, func(t *testing.T) { refused(t, "oci:"+l.dir+":v1", blockfmt.ErrCorrupt, convert.Options{}) })
			// The same with a descriptor that fits the wrong bytes.
			l = newLayout(t)
			l.image("v1", ocispec.MediaTypeImageManifest, amd64, source{
				tar: damaged, diffID: digest.FromBytes(data), pack: plain, mediaType: ocispec.MediaTypeImageLayerGzip})
			t.Run(name+", described", func(t *testing.T) { refused(t, "oci:"+l.dir+":v1", blockfmt.ErrCorrupt, convert.Options{}) })
		}
	}
}

func TestRefusesBombs(t *testing.T) {
	limit := convert.Options{MaxUncompressed: 8 << 20, MaxEntries: 1000}
	t.Run("compressed zeros", func(t *testing.T) {
		refused(t, simple(t, archive(t, file("zeros", strings.Repeat("\x00", 9<<20)))), blockfmt.ErrUnsupported, limit)
	})
	t.Run("over several layers", func(t *testing.T) {
		a, b := archive(t, file("a", strings.Repeat("\x00", 5<<20))), archive(t, file("b", strings.Repeat("\x00", 5<<20)))
		refused(t, simple(t, a, b), blockfmt.ErrUnsupported, limit)
	})
	t.Run("zeros after the archive", func(t *testing.T) {
		refused(t, simple(t, append(archive(t, file("a", "")), make([]byte, 9<<20)...)), blockfmt.ErrUnsupported, limit)
	})
	t.Run("sparse file", func(t *testing.T) {
		var b bytes.Buffer
		must(t, sparseLayer(&b))
		refused(t, simple(t, b.Bytes()), blockfmt.ErrUnsupported, limit)
	})
	t.Run("entries", func(t *testing.T) {
		var entries []entry
		for i := range 1001 {
			entries = append(entries, file(fmt.Sprint(i), ""))
		}
		refused(t, simple(t, archive(t, entries...)), blockfmt.ErrUnsupported, limit)
	})
	t.Run("implied directories", func(t *testing.T) {
		refused(t, simple(t, archive(t, file(strings.Repeat("d/", 1500)+"x", ""))), blockfmt.ErrUnsupported, limit)
	})
	t.Run("zstd window", func(t *testing.T) {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, zstd.WithWindowSize(512<<20))
		must(t, err)
		_, err = w.Write(archive(t, file("a", strings.Repeat("x", 1<<20))))
		must(t, err)
		must(t, w.Close())
		refused(t, simpleRaw(t, b.Bytes(), archive(t, file("a", strings.Repeat("x", 1<<20)))), blockfmt.ErrCorrupt, limit)
	})
}

// simpleRaw is an image of one layer given compressed, with the diffID of data.
func simpleRaw(t *testing.T, compressed, data []byte) string {
	l := newLayout(t)
	l.image("v1", ocispec.MediaTypeImageManifest, amd64,
		source{tar: compressed, pack: plain, diffID: digest.FromBytes(data), mediaType: ocispec.MediaTypeImageLayerZstd})
	return "oci:" + l.dir + ":v1"
}

func TestRefusesBadManifests(t *testing.T) {
	data := archive(t, file("a", ""))
	for name, c := range map[string]struct {
		kind   error
		change func(m *ocispec.Manifest, l *layout)
	}{
		"no layers":         {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) { m.Layers = nil }},
		"too many layers":   {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) { m.Layers = make([]ocispec.Descriptor, 1025) }},
		"encrypted":         {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) { m.Layers[0].MediaType += "+encrypted" }},
		"foreign digest":    {blockfmt.ErrCorrupt, func(m *ocispec.Manifest, _ *layout) { m.Layers[0].Digest = "sha256:../../etc/passwd" }},
		"sha512":            {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) { m.Layers[0].Digest = digest.SHA512.FromString("x") }},
		"negative size":     {blockfmt.ErrCorrupt, func(m *ocispec.Manifest, _ *layout) { m.Layers[0].Size = -1 }},
		"layer not there":   {blockfmt.ErrNotFound, func(m *ocispec.Manifest, _ *layout) { m.Layers[0].Digest = digest.FromString("x") }},
		"config not there":  {blockfmt.ErrNotFound, func(m *ocispec.Manifest, _ *layout) { m.Config.Digest = digest.FromString("x") }},
		"huge config":       {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) { m.Config.Size = 1 << 40 }},
		"config is no JSON": {blockfmt.ErrCorrupt, func(m *ocispec.Manifest, l *layout) { m.Config = l.blob("", []byte("x")) }},
		"two diffIDs":       {blockfmt.ErrCorrupt, func(m *ocispec.Manifest, _ *layout) { m.Layers = append(m.Layers, m.Layers[0]) }},
		"block image":       {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) { m.ArtifactType = blockfmt.ArtifactType }},
		"schema 1": {blockfmt.ErrUnsupported, func(m *ocispec.Manifest, _ *layout) {
			m.MediaType = "application/vnd.docker.distribution.manifest.v1+json"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			var m ocispec.Manifest
			l.decode(l.image("", ocispec.MediaTypeImageManifest, amd64, source{tar: data}), &m)
			c.change(&m, l)
			l.tag("v1", l.json(ocispec.MediaTypeImageManifest, m))
			refused(t, "oci:"+l.dir+":v1", c.kind, convert.Options{})
		})
	}
}

func TestFullDiskIsAnErrorAndNoMore(t *testing.T) {
	for _, limit := range []string{"size=2m", "nr_inodes=3"} {
		t.Run(limit, func(t *testing.T) { fullDisk(t, limit) })
	}
}

func fullDisk(t *testing.T, limit string) {
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.Mkdir(disk, 0o755))
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, limit))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	noise := make([]byte, 8<<20)
	_, err := rand.Read(noise)
	must(t, err)
	ref := simple(t, archive(t, file("a", string(noise))))
	cache := t.TempDir()
	for name, opts := range map[string]convert.Options{
		"spool": {TempDir: disk, CacheDir: cache}, "cache": {TempDir: t.TempDir(), CacheDir: disk}, "both": {TempDir: disk},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := convert.Convert(context.Background(), open(t, ref), opts)
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("got %v, want ENOSPC", err)
			}
			left, err := os.ReadDir(disk)
			must(t, err)
			if len(left) > 0 {
				t.Errorf("%d files left on the full disk", len(left))
			}
		})
	}
	converted(t, ref, convert.Options{CacheDir: cache}) // nothing half-written is in the way
}
