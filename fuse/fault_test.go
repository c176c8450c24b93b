package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

// patience is how long tests wait for what should happen soon.
const patience = 20 * time.Second

// assertEIO reads path from a child and wants it to fail with EIO.
func assertEIO(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("cat", path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("cat %s: %v, %d bytes, want EIO", path, err, len(out))
	}
}

func TestErrorIsEIOAndIsForgotten(t *testing.T) {
	log, lines := newLog()
	s := mount(t, fuse.Config{Log: log})
	b := fusetest.NewBlob(t, 2<<20, 1)
	path := add(t, s, 0, b)
	b.OnFill(func(context.Context, int64, int64) error {
		return fmt.Errorf("registry says 503: %w", blockfmt.ErrTransient)
	})
	for range 3 {
		assertEIO(t, path)
	}
	failed := lines.lines(slog.LevelError, "blob=blob-0")
	if len(failed) != 1 || !strings.Contains(failed[0], "registry says 503") || !strings.Contains(failed[0], "offset=0 length=") {
		t.Errorf("want one line that says blob, range and cause, got %q", failed)
	}
	b.OnFill(nil)
	if got := fusetest.Run(t, "cat", path); !bytes.Equal(got, b.Data) {
		t.Error("wrong bytes after the source recovered")
	}
}

func TestErrorInTheMiddle(t *testing.T) {
	s := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 4<<20, 1)
	path := add(t, s, 0, b)
	b.OnFill(func(_ context.Context, off, n int64) error {
		if off <= 2<<20 && 2<<20 < off+n {
			return blockfmt.ErrCorrupt
		}
		return nil
	})
	got, err := exec.Command("cat", path).Output()
	if err == nil || !bytes.HasPrefix(b.Data, got) {
		t.Errorf("%v: the %d bytes before the bad block are wrong", err, len(got))
	}
	b.OnFill(nil)
	if got := fusetest.Run(t, "cat", path); !bytes.Equal(got, b.Data) {
		t.Error("wrong bytes after the source recovered")
	}
}

// A local file that is shorter than the blob must not read as zeros.
func TestTruncatedFileIsEIO(t *testing.T) {
	log, lines := newLog()
	s := mount(t, fuse.Config{Log: log})
	b := fusetest.NewBlob(t, 1<<20, 1)
	path := add(t, s, 0, b)
	fusetest.Run(t, "cat", path)
	if err := b.File().Truncate(600_000); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dd", "if="+path, "iflag=direct", "bs=512K", "status=none").Output()
	if err == nil || !bytes.Equal(out, b.Data[:512<<10]) {
		t.Errorf("%v: read %d bytes, want the first 512 KiB and EIO", err, len(out))
	}
	if len(lines.lines(slog.LevelError, "local file")) != 1 {
		t.Errorf("no line about the local file")
	}
}

func TestStallIsBounded(t *testing.T) {
	const timeout = 300 * time.Millisecond
	log, lines := newLog()
	s := mount(t, fuse.Config{ReadTimeout: timeout, Log: log})
	release := make(chan struct{})
	for i, stall := range []func(context.Context, int64, int64) error{
		func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() },
		func(context.Context, int64, int64) error { <-release; return nil }, // ignores ctx
	} {
		b := fusetest.NewBlob(t, 1<<20, 1)
		path := add(t, s, uint64(i), b)
		b.OnFill(stall)
		start := time.Now()
		assertEIO(t, path)
		if took := time.Since(start); took < timeout || took > patience {
			t.Errorf("stall %d: EIO after %v, want about %v", i, took, timeout)
		}
		if i == 1 {
			close(release)
		}
		b.OnFill(nil)
		if got := fusetest.Run(t, "cat", path); !bytes.Equal(got, b.Data) {
			t.Errorf("stall %d: wrong bytes after it ended", i)
		}
	}
	if got := lines.lines(slog.LevelError, "no data after 300ms"); len(got) != 2 {
		t.Errorf("want a line for each blob, got %q", got)
	}
}

// One blob that stalls with many readers must not stop another.
func TestStalledBlobDoesNotStopOthers(t *testing.T) {
	s := mount(t, fuse.Config{})
	stalled, fine := fusetest.NewBlob(t, 64<<20, 1), fusetest.NewBlob(t, 1<<20, 2)
	release := make(chan struct{})
	stalled.OnFill(func(context.Context, int64, int64) error { <-release; return nil })
	path, finePath := add(t, s, 0, stalled), add(t, s, 1, fine)
	var readers []*exec.Cmd
	for i := range 40 {
		cmd := exec.Command("dd", "if="+path, "iflag=direct", "bs=1M", "count=1", fmt.Sprintf("skip=%d", i), "of=/dev/null", "status=none")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, cmd)
	}
	waitFor(t, "all readers to stall", func() bool { return stalled.Calls.Load() >= 40 })
	if got := fusetest.Run(t, "cat", finePath); !bytes.Equal(got, fine.Data) {
		t.Error("wrong bytes")
	}
	close(release)
	for _, cmd := range readers {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// waitFor polls what another process does.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestKilledReaderDiesAtOnce(t *testing.T) {
	s := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 1<<20, 1)
	path := add(t, s, 0, b)
	b.OnFill(func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() })
	cmd := exec.Command("cat", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reader to stall", func() bool { return b.Calls.Load() > 0 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Wait(); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v, want killed long before the 30 s timeout", err, time.Since(start))
	}
}

// The kernel interrupts on any signal; only a deadly one may fail the read.
func TestInterrupt(t *testing.T) {
	interrupted := make(chan struct{})
	close(interrupted)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		thread int
		want   gofuse.Status
	}{{"living reader", os.Getpid(), gofuse.OK}, {"unknown reader", 0, gofuse.OK}, {"dead reader", dead.Process.Pid, gofuse.EINTR}} {
		t.Run(test.name, func(t *testing.T) {
			r := fuse.NewReader(fuse.Config{})
			b := fusetest.NewBlob(t, 4096, 1)
			release := make(chan struct{})
			b.OnFill(func(ctx context.Context, _, _ int64) error {
				select {
				case <-release:
				case <-ctx.Done():
				}
				return nil
			})
			if test.want == gofuse.OK {
				time.AfterFunc(250*time.Millisecond, func() { close(release) })
			}
			p := make([]byte, 4096)
			if got := r.ReadAt(fuse.Caller{Cancel: interrupted, Thread: uint32(test.thread)}, "blob", b, p, 0); got != test.want {
				t.Errorf("status %v, want %v", got, test.want)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRemoveEndsReads(t *testing.T) {
	s := mount(t, fuse.Config{})
	b := fusetest.NewBlob(t, 1<<20, 1)
	path := add(t, s, 0, b)
	b.OnFill(func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() })
	var stderr bytes.Buffer
	cmd := exec.Command("cat", path)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reader to stall", func() bool { return b.Calls.Load() > 0 })
	if err := s.Remove(0); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), "Input/output error") {
		t.Errorf("%v: %s, want EIO", err, stderr.String())
	}
}

func TestCloseReportsSourceThatNeverReturns(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	s, err := fuse.Mount(dir, fuse.Config{ReadTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	b := fusetest.NewBlob(t, 4096, 1)
	release := make(chan struct{})
	b.OnFill(func(context.Context, int64, int64) error { <-release; return errors.New("too late") })
	assertEIO(t, add(t, s, 0, b))
	for range 2 {
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), "given up filling") {
			t.Errorf("close: %v, want it to say that a blob still fills", err)
		}
	}
	close(release)
}
