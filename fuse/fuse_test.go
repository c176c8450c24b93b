package fuse_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

func TestReadFromChild(t *testing.T) {
	for _, procs := range []int{1, runtime.GOMAXPROCS(0)} {
		t.Run(fmt.Sprintf("GOMAXPROCS=%d", procs), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			s := mount(t, fuse.Config{})
			b := fusetest.NewBlob(t, 3<<20+1234, 1)
			path := add(t, s, 7, b)
			if got := fusetest.Run(t, "cat", path); !bytes.Equal(got, b.Data) {
				t.Errorf("cat: %d bytes differ from the blob's %d", len(got), len(b.Data))
			}
			if got := fusetest.Run(t, "stat", "-c", "%i %s %a %h %Y", path); string(got) != "9 3146962 400 1 0\n" {
				t.Errorf("stat: %s", got)
			}
			if got := fusetest.Run(t, "ls", "-a", filepath.Dir(path)); string(got) != ".\n..\nblob-7\n" {
				t.Errorf("ls: %q", got)
			}
		})
	}
}

func TestDirectReadCutAtEnd(t *testing.T) {
	s := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 1<<20+100, 2)
	path := add(t, s, 0, b)
	got := fusetest.Run(t, "dd", "if="+path, "iflag=direct", "bs=512K", "status=none")
	if !bytes.Equal(got, b.Data) {
		t.Errorf("direct read: %d bytes differ from the blob's %d", len(got), len(b.Data))
	}
}

func TestConcurrentReadersFillOnce(t *testing.T) {
	s := mount(t, fuse.Config{})
	const blobs, readers = 4, 6
	var g errgroup.Group
	all := make([]*fusetest.Blob, blobs)
	for i := range all {
		all[i] = fusetest.NewBlob(t, 4<<20, byte(i))
		path := add(t, s, uint64(i), all[i])
		for range readers {
			g.Go(func() error {
				got, err := exec.Command("cat", path).Output()
				if err == nil && !bytes.Equal(got, all[i].Data) {
					err = fmt.Errorf("blob %d: wrong bytes", i)
				}
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	for i, b := range all {
		if got := b.Pages.Load(); got != 1024 {
			t.Errorf("blob %d: %d pages filled, want each of 1024 once", i, got)
		}
	}
}

func TestNothingIsWritable(t *testing.T) {
	s := mount(t, fuse.Config{})
	path := add(t, s, 0, fusetest.NewBlob(t, 4096, 0))
	for _, script := range []string{"echo x >> " + path, "rm -f " + path, "touch " + path + "2", "chmod 777 " + path, "mkdir " + path + "3"} {
		if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err == nil || !strings.Contains(string(out), "Read-only") {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}
}

func TestAddChecks(t *testing.T) {
	s := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 4096, 0)
	add(t, s, 3, b)
	for _, bad := range []struct {
		id   uint64
		name string
	}{{1 << 63, "a"}, {4, ""}, {4, "."}, {4, ".."}, {4, "a/b"}, {4, strings.Repeat("x", 256)}, {3, "other"}, {4, "blob-3"}} {
		if err := s.Add(bad.id, bad.name, b); err == nil {
			t.Errorf("blob %d could be added as %q", bad.id, bad.name)
		}
	}
}

func TestRemoveMakesRoomForTheName(t *testing.T) {
	s := mount(t, fuse.Config{})
	first, second := fusetest.NewBlob(t, 10_000, 1), fusetest.NewBlob(t, 20_000, 2)
	if err := s.Add(1, "name", first); err != nil {
		t.Fatal(err)
	}
	if got := fusetest.Run(t, "cat", s.Path("name")); !bytes.Equal(got, first.Data) {
		t.Error("first blob reads wrongly")
	}
	for range 2 { // the second time there is nothing to remove
		if err := s.Remove(1); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cat", s.Path("name")).CombinedOutput(); err == nil || !strings.Contains(string(out), "No such file") {
		t.Errorf("removed blob: %v: %s", err, out)
	}
	if err := s.Add(2, "name", second); err != nil {
		t.Fatal(err)
	}
	if got := fusetest.Run(t, "cat", s.Path("name")); !bytes.Equal(got, second.Data) {
		t.Error("second blob of the same name reads wrongly")
	}
}

func TestManyBlobsAreListed(t *testing.T) {
	s := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 4096, 0)
	for i := range 2000 {
		if err := s.Add(uint64(i*3), fmt.Sprintf("sha256-%064d", i), b); err != nil {
			t.Fatal(err)
		}
	}
	if got := bytes.Count(fusetest.Run(t, "ls", s.Path("")), []byte("\n")); got != 2000 {
		t.Errorf("%d names listed, want 2000", got)
	}
}

// A child that inherited the connection would keep readers of a dead server waiting.
func TestChildrenDoNotInheritTheConnection(t *testing.T) {
	mount(t, fuse.Config{})
	if out := fusetest.Run(t, "ls", "-l", "/proc/self/fd"); bytes.Contains(out, []byte("/dev/fuse")) {
		t.Errorf("child has the connection open:\n%s", out)
	}
}
