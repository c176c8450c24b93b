package fuse_test

import (
	"bytes"
	"testing"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mount serves an empty directory and, when the test ends, checks that nothing stays behind.
func mount(t testing.TB, cfg fuse.Config) (*fuse.Server, string) {
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
	return s, dir
}

func TestReadFromChild(t *testing.T) {
	s, dir := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 3<<20+1234, 1)
	if err := s.Add(7, "blob", b); err != nil {
		t.Fatal(err)
	}
	if got := fusetest.Run(t, "cat", s.Path("blob")); !bytes.Equal(got, b.Data) {
		t.Errorf("cat: %d bytes differ from the blob's %d", len(got), len(b.Data))
	}
	if got := fusetest.Run(t, "stat", "-c", "%i %s %a %h %Y", s.Path("blob")); string(got) != "9 3146962 400 1 0\n" {
		t.Errorf("stat: %s", got)
	}
	if got := fusetest.Run(t, "ls", "-a", dir); string(got) != ".\n..\nblob\n" {
		t.Errorf("ls: %q", got)
	}
}
