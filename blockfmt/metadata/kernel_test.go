package metadata

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mount has the kernel mount the world's image over its devices, without loop devices.
func (w *world) mount(t tester, dir string) string {
	t.Helper()
	options := [][2]string{{"source", w.image}}
	for _, d := range w.devices {
		options = append(options, [2]string{"device", d})
	}
	mountFS(t, "erofs", options, dir)
	return dir
}

func mountFS(t tester, kind string, options [][2]string, dir string) {
	t.Helper()
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("fsopen %s: %v", kind, err)
	}
	defer unix.Close(fd)
	for _, o := range options {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			t.Fatalf("%s=%s: %v: %s", o[0], o[1], err, kernelLog(fd))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		t.Fatalf("mount %s: %v: %s", kind, err, kernelLog(fd))
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("fsmount: %v", err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatalf("move_mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// kernelLog returns what the kernel has to say about a mount that failed.
func kernelLog(fd int) string {
	b := make([]byte, 8192)
	n, _ := unix.Read(fd, b)
	return string(b[:max(n, 0)])
}

// checkMounted compares a mounted tree with what it should be.
func checkMounted(t tester, dir string, tree *Tree) {
	t.Helper()
	inos, count := make(map[*Inode]uint64), links(tree)
	seen := make(map[uint64]*Inode)
	err := tree.Walk(func(path string, in *Inode) error {
		full := filepath.Join(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if ino, ok := inos[in]; ok && ino != st.Ino || seen[st.Ino] != nil && seen[st.Ino] != in {
			t.Errorf("%q: inode number %d does not follow the links", path, st.Ino)
		}
		inos[in], seen[st.Ino] = st.Ino, in
		if got, want := describeStat(in, st), describeInode(in, count[in]); got != want {
			t.Errorf("%q:\n got %s\nwant %s", path, got, want)
		}
		checkXattrs(t, full, in)
		checkKernelContent(t, full, in)
		return nil
	})
	if err != nil {
		t.Errorf("%v", err)
	}
}

func describeStat(in *Inode, st unix.Stat_t) string {
	size, rdev := st.Size, st.Rdev
	if in.IsDir() {
		size = 0
	}
	return fmt.Sprintf("%o %d:%d %d.%09d rdev %d:%d size %d links %d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec,
		unix.Major(rdev), unix.Minor(rdev), size, st.Nlink)
}

func describeInode(in *Inode, links uint64) string {
	size := in.Size
	if in.Mode&TypeMask == TypeSymlink {
		size = int64(len(in.Target))
	}
	return fmt.Sprintf("%o %d:%d %d.%09d rdev %d:%d size %d links %d", in.Mode, in.UID, in.GID, in.Mtime, in.MtimeNsec,
		in.Major, in.Minor, size, links)
}

func checkXattrs(t tester, full string, in *Inode) {
	t.Helper()
	if got := readXattrs(t, full); !maps.Equal(got, in.Xattrs) {
		t.Errorf("%q: xattrs %.500q, want %.500q", full, got, in.Xattrs)
	}
}

func readXattrs(t tester, full string) map[string]string {
	t.Helper()
	names := make([]byte, 1<<16)
	n, err := unix.Llistxattr(full, names)
	if err != nil {
		t.Fatalf("%q: listxattr: %v", full, err)
	}
	xattrs := make(map[string]string)
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			t.Fatalf("%q: getxattr %q: %v", full, name, err)
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs
}

func checkKernelContent(t tester, full string, in *Inode) {
	t.Helper()
	switch in.Mode & TypeMask {
	case TypeSymlink:
		if target, err := os.Readlink(full); err != nil || target != in.Target {
			t.Errorf("%q: target %q, %v; want %q", full, target, err, in.Target)
		}
	case TypeDir:
		entries, err := os.ReadDir(full)
		if err != nil {
			t.Errorf("%v", err)
		}
		names := make([]string, 0, len(entries))
		for _, e := range entries {
			names = append(names, e.Name())
			if want := in.Entries[e.Name()]; want != nil && fileType(want) != e.Type() {
				t.Errorf("%q: directory says type %v of %q", full, e.Type(), e.Name())
			}
		}
		slices.Sort(names)
		if !slices.Equal(names, slices.Sorted(maps.Keys(in.Entries))) {
			t.Errorf("%q: entries %.500q", full, names)
		}
	case TypeFile:
		f, err := os.Open(full)
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		defer f.Close()
		contentEquals(t, full, in, f)
	}
}

func fileType(in *Inode) fs.FileMode {
	return map[uint32]fs.FileMode{
		TypeFile: 0, TypeDir: fs.ModeDir, TypeSymlink: fs.ModeSymlink, TypeFifo: fs.ModeNamedPipe, TypeSocket: fs.ModeSocket,
		TypeChar: fs.ModeDevice | fs.ModeCharDevice, TypeBlock: fs.ModeDevice,
	}[in.Mode&TypeMask]
}

func TestKernelReadsTorture(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, torture())
	checkMounted(t, w.mount(t, mustMkdir(t, filepath.Join(dir, "mnt"))), w.tree)
}
