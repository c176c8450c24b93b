package convert_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	unpacker "github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// The reference is containerd itself: its code unpacks the layers for overlayfs and the kernel mounts them. Needs root.
func TestTortureEqualsOverlayfs(t *testing.T) {
	var layers [][]byte
	for _, l := range blocktest.TortureLayers() {
		if l.Name == "sparse" {
			continue // unpacking would write 5 GiB of zeros
		}
		var b bytes.Buffer
		must(t, l.Write(&b))
		layers = append(layers, b.Bytes())
	}
	r := converted(t, simple(t, layers...), convert.Options{Workers: 2})
	lower := unpack(t, layers)
	for n := 1; n <= len(layers); n++ {
		t.Run(fmt.Sprintf("layers-%d", n), func(t *testing.T) {
			compareTrees(t, mountOverlay(t, lower[:n]), prefixView(t, r, n))
		})
	}
	t.Run("merged", func(t *testing.T) { compareTrees(t, mountOverlay(t, lower), viewOf(t, r)) })
}

// prefixView is the image of the first n layers, from the metadata images that the companion keeps.
func prefixView(t *testing.T, r *convert.Result, n int) *view {
	t.Helper()
	c, err := blockfmt.ParseCompanion(r.Companion, len(r.Artifact.Layers))
	must(t, err)
	v := &view{t: t}
	var trees []*metadata.Tree
	for i := range n {
		trees = append(trees, readTree(t, r, c.Layers[i]))
		v.devices = append(v.devices, deviceOf(t, r, r.Artifact.Layers[i]))
	}
	v.tree, err = metadata.Merge(trees)
	must(t, err)
	return v
}

// unpack applies the layers as containerd's overlayfs snapshotter does, and returns their directories, bottom up.
func unpack(t *testing.T, layers [][]byte) []string {
	t.Helper()
	var dirs []string
	for i, data := range layers {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		must(t, os.Mkdir(dir, 0o755))
		parents := slices.Clone(dirs)
		slices.Reverse(parents)
		_, err := unpacker.Apply(context.Background(), dir, bytes.NewReader(data),
			unpacker.WithConvertWhiteout(unpacker.OverlayConvertWhiteout), unpacker.WithParents(parents))
		must(t, err)
		dirs = append(dirs, dir)
	}
	return dirs
}

func mountOverlay(t *testing.T, bottomUp []string) string {
	t.Helper()
	lower := slices.Clone(bottomUp)
	slices.Reverse(lower)
	if len(lower) == 1 {
		lower = append(lower, t.TempDir()) // overlayfs wants two
	}
	dir := t.TempDir()
	must(t, unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func compareTrees(t *testing.T, dir string, v *view) {
	t.Helper()
	want := map[string]*syscall.Stat_t{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := &syscall.Stat_t{}
		want[strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")] = st
		return syscall.Lstat(path, st)
	}))
	got := map[string]*metadata.Inode{}
	must(t, v.tree.Walk(func(path string, in *metadata.Inode) error {
		got[path] = in
		return nil
	}))
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if want[path] == nil {
			t.Errorf("%.120q should not be there", path)
		}
	}
	byInode, byNumber := map[*metadata.Inode]uint64{}, map[uint64]*metadata.Inode{}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		in, st := got[path], want[path]
		if in == nil {
			t.Errorf("%.120q is missing", path)
			continue
		}
		if a, b := describe(t, in, v, path), describeReal(t, filepath.Join(dir, path), st, path); a != b {
			t.Errorf("%.120q\n got %s\nwant %s", path, a, b)
		}
		if in.IsDir() {
			continue
		}
		if n, ok := byInode[in]; ok && n != st.Ino {
			t.Errorf("%.120q is a link here and a file of its own there", path)
		}
		if other, ok := byNumber[st.Ino]; ok && other != in {
			t.Errorf("%.120q is a file of its own here and a link there", path)
		}
		byInode[in], byNumber[st.Ino] = st.Ino, in
	}
}

func describe(t *testing.T, in *metadata.Inode, v *view, path string) string {
	rdev, size, content := uint64(0), int64(0), ""
	switch in.Mode & metadata.TypeMask {
	case metadata.TypeChar, metadata.TypeBlock:
		rdev = unix.Mkdev(in.Major, in.Minor)
	case metadata.TypeFile:
		size, content = in.Size, fmt.Sprintf("%x", sha256.Sum256(v.data(in)))
	case metadata.TypeSymlink:
		content = in.Target
	}
	mtime := fmt.Sprintf("%d.%09d", in.Mtime, in.MtimeNsec)
	return text(in.Mode, in.UID, in.GID, rdev, size, mtime, content, in.Xattrs, path)
}

func describeReal(t *testing.T, full string, st *syscall.Stat_t, path string) string {
	size, content := int64(0), ""
	switch st.Mode & metadata.TypeMask {
	case metadata.TypeFile:
		data, err := os.ReadFile(full)
		must(t, err)
		size, content = st.Size, fmt.Sprintf("%x", sha256.Sum256(data))
	case metadata.TypeSymlink:
		target, err := os.Readlink(full)
		must(t, err)
		content = target
	}
	mtime := fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	return text(st.Mode, st.Uid, st.Gid, st.Rdev, size, mtime, content, realXattrs(t, full), path)
}

func text(mode, uid, gid uint32, rdev uint64, size int64, mtime, content string, xattrs map[string]string, path string) string {
	if blocktest.TortureImplied(path) {
		mtime = "unpacking"
	}
	var x []string
	for _, k := range slices.Sorted(maps.Keys(xattrs)) {
		x = append(x, fmt.Sprintf("%s=%.40q", k, xattrs[k]))
	}
	return fmt.Sprintf("%o %d:%d rdev %d size %d time %s %.80q %s", mode, uid, gid, rdev, size, mtime, content, strings.Join(x, " "))
}

func realXattrs(t *testing.T, path string) map[string]string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	must(t, err)
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		must(t, err)
		out[name] = string(value[:n])
	}
	return out
}
