package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/erofs"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

// image is a test image: a tree, its metadata file and its devices.
type image struct {
	tree     *metadata.Tree
	metadata string
	devices  [][]byte
}

// newImage returns an image with n devices on which files with all kinds of attributes lie.
func newImage(t testing.TB, n int) *image {
	t.Helper()
	im := &image{tree: &metadata.Tree{Root: dir(0o755)}}
	root := im.tree.Root
	root.Mtime, root.MtimeNsec = 1234567890, 987654321
	for i := range n {
		im.devices = append(im.devices, fusetest.NewBlob(t, 1<<20, byte(i)).Data)
		d := dir(0o750)
		root.Entries[fmt.Sprintf("layer-%03d", i)] = d
		d.Entries["whole"] = file(900_000, metadata.Extent{Length: 900_000, Device: i})
		d.Entries["small"] = file(5, metadata.Extent{Length: 5, Device: i, DeviceOffset: 256 << 12 >> 1})
		d.Entries["holes"] = file(50<<12,
			metadata.Extent{FileOffset: 8 << 12, Length: 4 << 12, Device: i, DeviceOffset: 12 << 12},
			metadata.Extent{FileOffset: 12 << 12, Length: 4 << 12, Device: n - 1 - i, DeviceOffset: 100 << 12},
			metadata.Extent{FileOffset: 49 << 12, Length: 1 << 12, Device: i, DeviceOffset: 255 << 12})
	}
	im.addOddities()
	im.write(t)
	return im
}

// write writes the metadata image.
func (im *image) write(t testing.TB) {
	t.Helper()
	for _, data := range im.devices {
		im.tree.Devices = append(im.tree.Devices, metadata.Device{Size: int64(len(data))})
	}
	im.metadata = filepath.Join(t.TempDir(), "metadata.erofs")
	var b bytes.Buffer
	if _, err := im.tree.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.metadata, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (im *image) addOddities() {
	root := im.tree.Root.Entries
	whole := root["layer-000"].Entries["whole"]
	whole.Xattrs = map[string]string{"user.note": "three", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	whole.UID, whole.GID, whole.Mode = 100_000, 200_000, metadata.TypeFile|0o4755
	links := dir(0o1777)
	links.Xattrs = map[string]string{"trusted.odd": "x", "user.empty": ""}
	links.Entries["hard"], links.Entries["harder"] = whole, whole
	links.Entries["soft"] = &metadata.Inode{Mode: metadata.TypeSymlink | 0o777, Target: "../layer-000/whole", Mtime: -1, MtimeNsec: 5}
	root["links"] = links
	special := dir(0o700)
	special.Entries["null"] = &metadata.Inode{Mode: metadata.TypeChar | 0o666, Major: 1, Minor: 3}
	special.Entries["big"] = &metadata.Inode{Mode: metadata.TypeBlock | 0o600, Major: 259, Minor: 70_000}
	special.Entries["fifo"] = &metadata.Inode{Mode: metadata.TypeFifo | 0o622}
	special.Entries["socket"] = &metadata.Inode{Mode: metadata.TypeSocket | 0o600}
	special.Entries["empty"] = file(0)
	special.Entries["sparse"] = file(5 << 30)
	special.Entries["\xff\xfe not UTF-8 \n"] = file(0)
	special.Entries[string(bytes.Repeat([]byte("n"), 255))] = file(0)
	root["special"] = special
	many := dir(0o755)
	for i := range 3000 {
		many.Entries[fmt.Sprintf("entry-with-a-rather-long-name-%05d", i)] = file(0)
	}
	root["many"] = many
}

func dir(perm uint32) *metadata.Inode {
	return &metadata.Inode{Mode: metadata.TypeDir | perm, Entries: map[string]*metadata.Inode{}}
}

func file(size int64, extents ...metadata.Extent) *metadata.Inode {
	return &metadata.Inode{Mode: metadata.TypeFile | 0o644, Size: size, Extents: extents, Mtime: 1_700_000_000, MtimeNsec: uint32(size) % 1e9}
}

// blobs returns the devices as lazy blobs.
func (im *image) blobs(t testing.TB) []*fusetest.Blob {
	t.Helper()
	var blobs []*fusetest.Blob
	for _, data := range im.devices {
		blobs = append(blobs, fusetest.BlobOf(t, data))
	}
	return blobs
}

// serve serves the blobs in a FUSE mount and returns a Spec with them as devices.
func (im *image) serve(t testing.TB, blobs []*fusetest.Blob, cfg fuse.Config) (erofs.Spec, *fuse.Server) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	s, err := fuse.Mount(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	spec := erofs.Spec{Metadata: im.metadata, Log: cfg.Log, ReadTimeout: cfg.ReadTimeout}
	for i, b := range blobs {
		name := fmt.Sprintf("device-%d", i)
		if err := s.Add(uint64(i), name, b); err != nil {
			t.Fatal(err)
		}
		spec.Devices = append(spec.Devices, s.Path(name))
		spec.Blobs = append(spec.Blobs, b)
	}
	return spec, s
}

// mount mounts spec on a fresh directory until the test ends.
func mount(t testing.TB, spec erofs.Spec) *erofs.Mounted {
	t.Helper()
	spec.Target = t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, spec.Target) })
	m, err := erofs.Mount(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return m
}

// content returns the bytes of a file of the image.
func (im *image) content(in *metadata.Inode) []byte {
	data := make([]byte, in.Size)
	for _, e := range in.Extents {
		copy(data[e.FileOffset:e.FileOffset+e.Length], im.devices[e.Device][e.DeviceOffset:])
	}
	return data
}
