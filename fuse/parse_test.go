package fuse_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

func TestParseMount(t *testing.T) {
	for line, want := range map[string][3]string{
		`36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`:        {"98:0", "/mnt", "ext3"},
		`80 35 0:39 / /a\040b\134\011c rw - fuse.xylem xylem ro,user_id=0`: {"0:39", "/a b\\\tc", "fuse.xylem"},
		`80 35 0:39 / /a\04 rw - fuse.xylem xylem ro`:                      {"0:39", `/a\04`, "fuse.xylem"},
		`80 35 0:39 /`: {},
		``:             {},
	} {
		if dev, dir, typ := fuse.ParseMount(line); [3]string{dev, dir, typ} != want {
			t.Errorf("%s: %q %q %q, want %q", line, dev, dir, typ, want)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 / /a\040b rw,noatime master:1 - ext3 /dev/root rw`)
	f.Add(`\04 - \`)
	f.Fuzz(func(t *testing.T, line string) {
		if _, dir, _ := fuse.ParseMount(line); len(dir) > len(line) || strings.Count(dir, "\\") > strings.Count(line, "\\") {
			t.Errorf("%q became %q", line, dir)
		}
	})
}

func TestHasKill(t *testing.T) {
	for mask, want := range map[string]bool{"\t0000000000000100\n": true, "\t0000000000004001\n": false, "": false, "\tzz\n": false} {
		if fuse.HasKill([]byte(mask)) != want {
			t.Errorf("%q", mask)
		}
	}
}

func TestIsMountPoint(t *testing.T) {
	s := mount(t, fuse.Config{})
	dir := strings.TrimSuffix(s.Path(""), "/")
	if mounted, err := fuse.IsMountPoint(dir); err != nil || !mounted {
		t.Errorf("served directory: %v, %v", mounted, err)
	}
	if mounted, err := fuse.IsMountPoint(t.TempDir()); err != nil || mounted {
		t.Errorf("plain directory: %v, %v", mounted, err)
	}
	fusetest.Run(t, "umount", dir)
	if mounted, err := fuse.IsMountPoint(dir); err != nil || mounted {
		t.Errorf("unmounted directory: %v, %v", mounted, err)
	}
}

func TestMountThroughSymlink(t *testing.T) {
	real := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, real) })
	if err := os.Mkdir(real+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	link := t.TempDir() + "/link"
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	log, lines := newLog()
	s, err := fuse.Mount(link+"/mnt", fuse.Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.Path("x"), real+"/mnt/x"; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
	if got := lines.lines(slog.LevelWarn, "readahead"); len(got) != 0 {
		t.Errorf("%s", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
