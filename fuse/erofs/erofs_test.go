package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/erofs"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

// inAllWays runs a test once for each way, with a Spec over a FUSE mount of the image's blobs.
func inAllWays(t *testing.T, im *image, cfg fuse.Config, test func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob)) {
	t.Helper()
	for _, way := range erofs.Ways() {
		t.Run(way.String(), func(t *testing.T) {
			cfg := cfg
			if cfg.Log == nil {
				cfg.Log = testLog(t)
			}
			blobs := im.blobs(t)
			spec, _ := im.serve(t, blobs, cfg)
			spec.Way = way
			test(t, spec, blobs)
		})
	}
}

func TestTreeIsTheSameInAllWays(t *testing.T) {
	im := newImage(t, 3)
	want := im.expect()
	for _, procs := range []int{1, runtime.GOMAXPROCS(0)} {
		t.Run(fmt.Sprintf("GOMAXPROCS=%d", procs), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
				m := mount(t, spec)
				assertListing(t, list(t, m.Target()), want)
				assertListing(t, list(t, m.Target()), want) // from the page cache
			})
		})
	}
}

func TestManyDevices(t *testing.T) {
	im := newImage(t, 120)
	want := im.expect()
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		assertListing(t, list(t, mount(t, spec).Target()), want)
	})
}

func TestLocalDevices(t *testing.T) {
	im := newImage(t, 2)
	want := im.expect()
	for _, way := range erofs.Ways() {
		t.Run(way.String(), func(t *testing.T) {
			spec := erofs.Spec{Metadata: im.metadata, Way: way, Log: testLog(t)}
			for i, data := range im.devices {
				path := filepath.Join(t.TempDir(), fmt.Sprintf("device-%d", i))
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				spec.Devices = append(spec.Devices, path)
			}
			assertListing(t, list(t, mount(t, spec).Target()), want)
		})
	}
}

func TestBuffered(t *testing.T) {
	im := newImage(t, 2)
	want := im.expect()
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		spec.Buffered = true
		assertListing(t, list(t, mount(t, spec).Target()), want)
	})
}

// A container's processes are not root and do not know of the FUSE mount below.
func TestOtherUsersCanRead(t *testing.T) {
	im := newImage(t, 1)
	want := im.content(im.tree.Root.Entries["links"].Entries["hard"])
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		m := mount(t, spec)
		for dir := m.Target(); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) { // test directories are closed to others
			if err := os.Chmod(dir, 0o755); err != nil && err.(*os.PathError).Err != unix.EROFS {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("cat", m.Target()+"/links/soft")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if _, err := cmd.Output(); err == nil {
			t.Error("another user could pass a directory of mode 0750")
		}
		cmd = exec.Command("cat", m.Target()+"/links/hard")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("another user read %d bytes: %v", len(got), err)
		}
	})
}

func TestConcurrentReaders(t *testing.T) {
	im := newImage(t, 4)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
		m := mount(t, spec)
		var g errgroup.Group
		for i := range 16 {
			layer := fmt.Sprintf("layer-%03d", i%4)
			g.Go(func() error {
				got, err := exec.Command("cat", filepath.Join(m.Target(), layer, "whole")).Output()
				if err == nil && !bytes.Equal(got, im.content(im.tree.Root.Entries[layer].Entries["whole"])) {
					err = fmt.Errorf("%s reads wrongly", layer)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		for i, b := range blobs {
			if pages := b.Pages.Load(); pages > 256 {
				t.Errorf("blob %d: %d of 256 pages filled", i, pages)
			}
		}
	})
}

func TestOverlayOnTop(t *testing.T) {
	im := newImage(t, 2)
	want := im.content(im.tree.Root.Entries["layer-001"].Entries["holes"])
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		m := mount(t, spec)
		root, work := t.TempDir(), t.TempDir()
		upper := filepath.Join(work, "upper")
		for _, dir := range []string{upper, filepath.Join(work, "work")} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { fusetest.AssertUnmounted(t, root) })
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s/work", m.Target(), upper, work)
		if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
			t.Fatal(err)
		}
		if got := fusetest.Run(t, "cat", root+"/layer-001/holes"); !bytes.Equal(got, want) {
			t.Error("wrong bytes through the overlay")
		}
		fusetest.Run(t, "sh", "-ec", "cd "+root+"; echo new >> layer-001/small; rm links/hard; mv special/empty special/moved; ln links/harder third")
		if got := fusetest.Run(t, "stat", "-c", "%s", root+"/layer-001/small"); string(got) != "9\n" {
			t.Errorf("appended file has %s bytes", got)
		}
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestReadAhead(t *testing.T) {
	im := newImage(t, 1)
	for _, test := range []struct{ readAhead, most int64 }{{4 << 10, 16 << 10}, {512 << 10, 512 << 10}} {
		inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
			spec.ReadAhead = int(test.readAhead)
			m := mount(t, spec)
			fusetest.Run(t, "dd", "if="+m.Target()+"/layer-000/whole", "of=/dev/null", "bs=4K", "status=none")
			average := 900_000 / blobs[0].Calls.Load()
			if test.readAhead == 4<<10 && average > test.most || test.readAhead > 4<<10 && average < 100<<10 {
				t.Errorf("readahead %d: requests of %d bytes", test.readAhead, average)
			}
		})
	}
}

// Mounts made at the same time get their own readahead each.
func TestReadAheadOfConcurrentMounts(t *testing.T) {
	im := newImage(t, 1)
	var g errgroup.Group
	for i := range 8 {
		blobs := im.blobs(t)
		spec, _ := im.serve(t, blobs, fuse.Config{Log: testLog(t)})
		spec.Target, spec.ReadAhead = t.TempDir(), []int{4 << 10, 512 << 10}[i%2]
		t.Cleanup(func() { fusetest.AssertUnmounted(t, spec.Target) })
		g.Go(func() error {
			m, err := erofs.Mount(t.Context(), spec)
			if err != nil {
				return err
			}
			out, err := exec.Command("dd", "if="+m.Target()+"/layer-000/whole", "of=/dev/null", "bs=4K").CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			} else if calls := blobs[0].Calls.Load(); (calls > 100) != (spec.ReadAhead == 4<<10) {
				err = fmt.Errorf("readahead %d: %d requests for 220 pages", spec.ReadAhead, calls)
			}
			return errors.Join(err, m.Unmount(t.Context()))
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// Programs are read by page faults.
func TestRunProgram(t *testing.T) {
	program, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	padded := append(program, make([]byte, -len(program)&4095)...)
	im := &image{tree: &metadata.Tree{Root: dir(0o755)}, devices: [][]byte{padded}}
	im.tree.Root.Entries["sh"] = file(int64(len(program)), metadata.Extent{Length: int64(len(program))})
	im.tree.Root.Entries["sh"].Mode |= 0o111
	im.write(t)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
		m := mount(t, spec)
		// Not started from here: see package fuse.
		if got := fusetest.Run(t, "sh", "-c", m.Target()+"/sh -c 'echo $((6*7))'; exit"); string(got) != "42\n" {
			t.Errorf("printed %q", got)
		}
	})
}

func TestParseWay(t *testing.T) {
	for _, way := range erofs.Ways() {
		if got, err := erofs.ParseWay(way.String()); got != way || err != nil {
			t.Errorf("%v: %v, %v", way, got, err)
		}
	}
	if _, err := erofs.ParseWay("nfs"); err == nil {
		t.Error("parsed a way that does not exist")
	}
	if got := erofs.Way(9).String(); !strings.Contains(got, "9") {
		t.Error(got)
	}
}
