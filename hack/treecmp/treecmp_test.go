package treecmp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// must is for calls that only fail if the machine is broken.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plant makes a tree with one of everything.
func plant(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(p("d"), 0o755))
	must(t, os.WriteFile(p("d/f"), []byte(strings.Repeat("content", 1<<18)), 0o644))
	must(t, os.WriteFile(p("g\xff"), []byte("x"), 0o600))
	must(t, os.WriteFile(p("h"), []byte("x"), 0o600))
	must(t, os.Link(p("d/f"), p("link")))
	must(t, os.Link(p("h"), p("h2")))
	must(t, os.Symlink("d/f", p("symlink")))
	must(t, unix.Mknod(p("fifo"), unix.S_IFIFO|0o644, 0))
	must(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Setxattr(p("d/f"), "user.a", []byte("1"), 0))
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := unix.NsecToTimespec(1_000_000_001)
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return dir
}

func TestEqual(t *testing.T) {
	differences, err := Compare(t.Context(), plant(t), plant(t), Options{Root: true})
	if err != nil || len(differences) > 0 {
		t.Errorf("equal trees differ: %q, %v", differences, err)
	}
}

// TestFindsDifference changes one property at a time, each of which must be found and named.
func TestFindsDifference(t *testing.T) {
	tests := map[string]struct {
		change func(p func(string) string) error
		want   string
	}{
		"missing":   {func(p func(string) string) error { return os.Remove(p("fifo")) }, `"fifo": is missing`},
		"extra":     {func(p func(string) string) error { return os.Mkdir(p("new"), 0o755) }, `"new": should not`},
		"mode":      {func(p func(string) string) error { return unix.Chmod(p("g\xff"), 0o4600) }, "mode is"},
		"dir mode":  {func(p func(string) string) error { return os.Chmod(p("d"), 0o700) }, `"d": mode is`},
		"owner":     {func(p func(string) string) error { return os.Lchown(p("symlink"), 70_000, 0) }, "uid is 70000"},
		"group":     {func(p func(string) string) error { return os.Lchown(p("symlink"), 0, 70_000) }, "gid is 70000"},
		"time":      {func(p func(string) string) error { return os.Chtimes(p("d"), time.Time{}, time.Unix(1, 2)) }, "mtime is {1 2}"},
		"size":      {func(p func(string) string) error { return os.Truncate(p("h"), 7) }, "size is 7"},
		"xattr":     {func(p func(string) string) error { return unix.Setxattr(p("d/f"), "user.a", []byte("2"), 0) }, "extended"},
		"new xattr": {func(p func(string) string) error { return unix.Setxattr(p("d"), "user.b", nil, 0) }, `"d": extended`},
		"device": {func(p func(string) string) error {
			return remake(p("null"), func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) })
		}, "device is"},
		"type": {func(p func(string) string) error {
			return remake(p("fifo"), func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) })
		}, "mode is"},
		"no directory": {func(p func(string) string) error { return os.Rename(p("d"), p("e")) }, `"d": is missing`},
		"target": {func(p func(string) string) error {
			return remake(p("symlink"), func(path string) error { return os.Symlink("d/g", path) })
		}, "points to"},
		"content": {func(p func(string) string) error {
			f, err := os.OpenFile(p("d/f"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("!"), 1<<20+5)
			return err
		}, "content differs from byte 1048581"},
		"link count": {func(p func(string) string) error { return os.Link(p("h"), p("h3")) }, "link count is 3"},
		"link identity": {func(p func(string) string) error { // as many names, paired otherwise
			err := os.Remove(p("link"))
			if err == nil {
				err = os.Link(p("h"), p("link"))
			}
			return err
		}, "is one file with"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			want, got := plant(t), plant(t)
			must(t, test.change(func(name string) string { return filepath.Join(got, name) }))
			differences, err := Compare(t.Context(), want, got, Options{})
			if err != nil || !strings.Contains(strings.Join(differences, "\n"), test.want) {
				t.Errorf("want a difference with %q, got %q, %v", test.want, differences, err)
			}
		})
	}
}

func TestIgnore(t *testing.T) {
	want, got := plant(t), plant(t)
	must(t, os.Chtimes(filepath.Join(got, "d"), time.Time{}, time.Unix(1, 2)))
	must(t, os.Chmod(filepath.Join(got, "d"), 0o700))
	ignore := func(path, property string) bool { return path == "d" && property == "mtime" }
	if differences, err := Compare(t.Context(), want, got, Options{Ignore: ignore}); err != nil || len(differences) != 1 || !strings.Contains(differences[0], "mode") {
		t.Errorf("want a difference of mode only, got %q, %v", differences, err)
	}
}

func remake(path string, make func(string) error) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return make(path)
}

func TestBounded(t *testing.T) {
	want, got := t.TempDir(), t.TempDir()
	for i := range 3 * MaxDifferences {
		must(t, os.Mkdir(filepath.Join(want, strings.Repeat("x", i+1)), 0o755))
	}
	if differences, err := Compare(t.Context(), want, got, Options{}); err != nil || len(differences) != MaxDifferences {
		t.Errorf("got %d differences, %v", len(differences), err)
	}
}
