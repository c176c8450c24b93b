package fuse_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/fuse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mount serves an empty directory and, when the test ends, checks that nothing stays behind.
func mount(t testing.TB, cfg fuse.Config) (*fuse.Server, string) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { assertUnmounted(t, dir) })
	s, err := fuse.Mount(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, dir
}

func assertUnmounted(t testing.TB, dir string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(info), " "+dir) {
		t.Errorf("mount left behind below %s", dir)
		unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	}
}

// run runs a child process and returns what it printed.
func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, stderr.Bytes())
	}
	return out
}

func TestReadFromChild(t *testing.T) {
	s, dir := mount(t, fuse.Config{})
	b := newLazyBlob(t, 3<<20+1234)
	if err := s.Add(7, "blob", b); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "cat", s.Path("blob")); !bytes.Equal(got, b.data) {
		t.Errorf("cat: %d bytes differ from the blob's %d", len(got), len(b.data))
	}
	if got := run(t, "stat", "-c", "%i %s %a %h %Y", s.Path("blob")); string(got) != "9 3146962 400 1 0\n" {
		t.Errorf("stat: %s", got)
	}
	if got := run(t, "ls", "-a", dir); string(got) != ".\n..\nblob\n" {
		t.Errorf("ls: %q", got)
	}
}
