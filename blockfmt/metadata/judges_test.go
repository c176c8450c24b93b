package metadata

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
)

// fsck has erofs-utils check the image and, if dir is given, extract it there.
func (w *world) fsck(t tester, dir string) {
	t.Helper()
	args := []string{w.image}
	for _, d := range w.devices {
		args = append(args, "--device="+d)
	}
	if dir != "" {
		args = append(args, "--extract="+dir, "--overwrite")
	}
	if out, err := exec.Command("fsck.erofs", args...).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// TestFsckAcceptsEveryEnd has the last inode end at every place in a block.
func TestFsckAcceptsEveryEnd(t *testing.T) {
	dir := t.TempDir()
	tree := &Tree{Root: directory(make(map[string]*Inode))}
	for i := range blockSize/inodeSize + 1 {
		tree.Root.Entries[fmt.Sprintf("%03d", i)] = file(0)
		newWorld(t, dir, tree).fsck(t, "")
	}
}

func TestFsckAcceptsTorture(t *testing.T) {
	dir := t.TempDir()
	tree := torture()
	newWorld(t, dir, tree).fsck(t, "")

	out := filepath.Join(dir, "out")
	newWorld(t, dir, tree).fsck(t, out)
	err := tree.Walk(func(path string, in *Inode) error {
		if in.Mode&TypeMask != TypeFile || hasHoles(in) {
			return nil // erofs-utils 1.5 leaves holes out when it extracts
		}
		f, err := os.Open(filepath.Join(out, path))
		if err != nil {
			return err
		}
		defer f.Close()
		contentEquals(t, path, in, f)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func hasHoles(in *Inode) bool {
	data := int64(0)
	for _, e := range in.Extents {
		data += e.Length
	}
	return data < in.Size
}

// goErofs opens the image with the reader of go-erofs.
func (w *world) goErofs(t tester) fs.FS {
	t.Helper()
	var files []io.ReaderAt
	for _, path := range append([]string{w.image}, w.devices...) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	fsys, err := erofs.Open(files[0], erofs.WithExtraDevices(files[1:]...))
	if err != nil {
		t.Fatalf("go-erofs: %v", err)
	}
	return fsys
}

func checkGoErofs(t tester, fsys fs.FS, tree *Tree) {
	t.Helper()
	count := links(tree)
	err := tree.Walk(func(path string, in *Inode) error {
		name := path
		if name == "" {
			name = "."
		}
		info, err := fsys.(fs.ReadLinkFS).Lstat(name)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*erofs.Stat)
		if !ok {
			return fmt.Errorf("%q has no erofs.Stat but %T", path, info.Sys())
		}
		got := fmt.Sprint(st.Mode, st.UID, st.GID, int64(st.Mtime), st.MtimeNs, st.Rdev, st.Nlink)
		want := fmt.Sprint(goMode(in), in.UID, in.GID, in.Mtime, in.MtimeNsec, encodeDevice(in.Major, in.Minor), count[in])
		if got != want {
			t.Errorf("%q:\n got %s\nwant %s", path, got, want)
		}
		if x := goXattrs(st); !maps.Equal(x, in.Xattrs) {
			t.Errorf("%q: xattrs %.300q, want %.300q", path, x, in.Xattrs)
		}
		return checkGoContent(t, fsys, name, in)
	})
	if err != nil {
		t.Errorf("go-erofs: %v", err)
	}
}

// goXattrs undoes the "." that go-erofs appends to the names of ACLs.
func goXattrs(st *erofs.Stat) map[string]string {
	m := make(map[string]string)
	for name, value := range st.Xattrs {
		if strings.HasPrefix(name, "system.posix_acl_") {
			name = strings.TrimSuffix(name, ".")
		}
		m[name] = value
	}
	return m
}

func goMode(in *Inode) fs.FileMode {
	m := fileType(in) | fs.FileMode(in.Mode&0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if in.Mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

func checkGoContent(t tester, fsys fs.FS, name string, in *Inode) error {
	t.Helper()
	switch in.Mode & TypeMask {
	case TypeDir:
		entries, err := fs.ReadDir(fsys, name)
		if err != nil {
			return err
		}
		names := make([]string, 0, len(entries))
		for _, e := range entries {
			names = append(names, e.Name())
		}
		slices.Sort(names)
		if !slices.Equal(names, slices.Sorted(maps.Keys(in.Entries))) {
			t.Errorf("%q: entries %.300q", name, names)
		}
	case TypeSymlink:
		if target, err := fs.ReadLink(fsys, name); err != nil || target != in.Target {
			t.Errorf("%q: target %.100q, %v", name, target, err)
		}
	case TypeFile:
		if in.Size > 16<<20 {
			return nil
		}
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		if string(b) != string(fileBytes(in, 0, in.Size)) {
			t.Errorf("%q: wrong content", name)
		}
	}
	return nil
}

func TestGoErofsReadsTorture(t *testing.T) {
	w := newWorld(t, t.TempDir(), torture())
	checkGoErofs(t, w.goErofs(t), w.tree)
}
