package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/erofs"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// assertFails reads path from a child and wants EIO.
func assertFails(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("cat", path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("cat %s: %v, %d bytes, want EIO", path, err, len(out))
	}
}

func TestErrorsReachTheReaderAndAreForgotten(t *testing.T) {
	im := newImage(t, 1)
	want := im.content(im.tree.Root.Entries["layer-000"].Entries["whole"])
	const timeout = 300 * time.Millisecond
	never := make(chan struct{})
	defer close(never)
	for name, fault := range map[string]func(context.Context, int64, int64) error{
		"error":       func(context.Context, int64, int64) error { return blockfmt.ErrCorrupt },
		"stall":       func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() },
		"second half": func(_ context.Context, off, n int64) error { return errorIf(off+n > 450_000) },
	} {
		t.Run(name, func(t *testing.T) {
			inAllWays(t, im, fuse.Config{ReadTimeout: timeout}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
				m := mount(t, spec)
				path := m.Target() + "/layer-000/whole"
				blobs[0].OnFill(fault)
				for range 2 {
					start := time.Now()
					assertFails(t, path)
					if took := time.Since(start); took > 20*time.Second {
						t.Errorf("EIO after %v", took)
					}
				}
				blobs[0].OnFill(nil)
				if got := fusetest.Run(t, "cat", path); !bytes.Equal(got, want) {
					t.Error("wrong bytes after the source recovered")
				}
			})
		})
	}
}

func errorIf(failed bool) error {
	if failed {
		return fmt.Errorf("no route: %w", blockfmt.ErrTransient)
	}
	return nil
}

// EROFS takes what a short reply lacks for zeros, so there must be none when a local file has lost its end.
func TestTruncatedBlobIsEIO(t *testing.T) {
	im := newImage(t, 1)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
		if err := blobs[0].Fill(t.Context(), 0, blobs[0].Size()); err != nil {
			t.Fatal(err)
		}
		if err := blobs[0].File().Truncate(500_000); err != nil {
			t.Fatal(err)
		}
		assertFails(t, mount(t, spec).Target()+"/layer-000/whole")
	})
}

func TestSlowSource(t *testing.T) {
	im := newImage(t, 1)
	want := im.content(im.tree.Root.Entries["layer-000"].Entries["holes"])
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
		m := mount(t, spec)
		blobs[0].OnFill(func(ctx context.Context, _, _ int64) error {
			select {
			case <-time.After(20 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if got := fusetest.Run(t, "cat", m.Target()+"/layer-000/holes"); !bytes.Equal(got, want) {
			t.Error("wrong bytes")
		}
	})
}

func TestKilledReaderDiesAtOnce(t *testing.T) {
	im := newImage(t, 1)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, blobs []*fusetest.Blob) {
		m := mount(t, spec)
		release, stalled := make(chan struct{}), make(chan struct{}, 100)
		defer close(release)
		blobs[0].OnFill(func(context.Context, int64, int64) error { stalled <- struct{}{}; <-release; return nil })
		cmd := exec.Command("cat", m.Target()+"/layer-000/whole")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-stalled
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := cmd.Wait(); err == nil || time.Since(start) > 10*time.Second {
			t.Errorf("%v after %v, want killed long before the timeout", err, time.Since(start))
		}
	})
}

func TestUnmountIsIdempotentAndComplete(t *testing.T) {
	im := newImage(t, 2)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		m := mount(t, spec)
		if m.Way() != spec.Way {
			t.Errorf("mounted as %v", m.Way())
		}
		fusetest.Run(t, "cat", m.Target()+"/layer-001/whole")
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Unmount(cancelled); !errors.Is(err, context.Canceled) {
			t.Errorf("unmount with an ended context: %v", err)
		}
		for range 2 {
			if err := m.Unmount(t.Context()); err != nil {
				t.Error(err)
			}
		}
		fusetest.AssertUnmounted(t, m.Target())
		assertNoLoops(t, im.metadata)
	})
}

// assertNoLoops fails for every loop device over path.
func assertNoLoops(t *testing.T, path string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(backing), path) {
			t.Errorf("%s is still in use for %s", file, path)
		}
	}
}

func TestUnmountWhileBusy(t *testing.T) {
	im := newImage(t, 1)
	var log bytes.Buffer
	cfg := fuse.Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	inAllWays(t, im, cfg, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		log.Reset()
		m := mount(t, spec)
		holder := exec.Command("sh", "-c", "exec 3<"+m.Target()+"/layer-000/whole; echo open; read line")
		stdin, err := holder.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := holder.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := holder.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stdout, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := m.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
		fusetest.AssertUnmounted(t, m.Target())
		if strings.Count(log.String(), "still in use") != 1 {
			t.Errorf("want one line about the lazy unmount, got %q", log.String())
		}
		stdin.Close()
		holder.Wait() // "read" fails at the end of input
	})
}

func TestSomebodyElseUnmounted(t *testing.T) {
	im := newImage(t, 1)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		m := mount(t, spec)
		fusetest.Run(t, "umount", m.Target())
		if err := m.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestClear(t *testing.T) {
	im := newImage(t, 1)
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, spec erofs.Spec, _ []*fusetest.Blob) {
		m := mount(t, spec)
		if err := unix.Mount("tmpfs", m.Target(), "tmpfs", 0, ""); err != nil { // something on top
			t.Fatal(err)
		}
		for range 2 {
			if err := erofs.Clear(m.Target(), nil); err != nil {
				t.Error(err)
			}
		}
		fusetest.AssertUnmounted(t, m.Target())
	})
}

func TestBadInput(t *testing.T) {
	im := newImage(t, 2)
	garbage, short := filepath.Join(t.TempDir(), "garbage"), filepath.Join(t.TempDir(), "short")
	image, err := os.ReadFile(im.metadata)
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{garbage: bytes.Repeat([]byte("x"), 8192), short: image[:4096]} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	inAllWays(t, im, fuse.Config{}, func(t *testing.T, good erofs.Spec, _ []*fusetest.Blob) {
		for name, change := range map[string]func(*erofs.Spec){
			"no metadata":     func(s *erofs.Spec) { s.Metadata += ".missing" },
			"garbage":         func(s *erofs.Spec) { s.Metadata = garbage },
			"too few devices": func(s *erofs.Spec) { s.Devices, s.Blobs = s.Devices[:1], s.Blobs[:1] },
			"too many":        func(s *erofs.Spec) { s.Devices, s.Blobs = append(s.Devices, s.Devices[0]), append(s.Blobs, s.Blobs[0]) },
			"missing device":  func(s *erofs.Spec) { s.Devices, s.Blobs = []string{s.Devices[0], "/nowhere"}, nil },
			"no target":       func(s *erofs.Spec) { s.Target += "/missing" },
			"unknown way":     func(s *erofs.Spec) { s.Way = 17 },
		} {
			spec := good
			spec.Target = t.TempDir()
			change(&spec)
			m, err := erofs.Mount(t.Context(), spec)
			if err == nil {
				t.Errorf("%s: mounted", name)
				m.Unmount(t.Context())
			} else {
				t.Logf("%s: %v", name, err)
			}
			fusetest.AssertUnmounted(t, spec.Target)
			assertNoLoops(t, spec.Metadata)
		}
	})
}

func TestErrorKinds(t *testing.T) {
	im := newImage(t, 1)
	spec := erofs.Spec{Metadata: im.metadata, Devices: []string{"/" + strings.Repeat("long/", 60)}, Target: t.TempDir()}
	if _, err := erofs.Mount(t.Context(), spec); !errors.Is(err, blockfmt.ErrUnsupported) {
		t.Errorf("path longer than the kernel takes: %v", err)
	}
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Way, spec.Devices = erofs.WayLoop, []string{odd}
	if _, err := erofs.Mount(t.Context(), spec); !errors.Is(err, blockfmt.ErrUnsupported) {
		t.Errorf("device that no loop device can show whole: %v", err)
	}
	spec.Way, spec.Devices = erofs.WayFile, []string{"/nowhere"}
	if _, err := erofs.Mount(t.Context(), spec); !errors.Is(err, unix.ENOENT) || !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("device that is not there: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := erofs.Mount(cancelled, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
