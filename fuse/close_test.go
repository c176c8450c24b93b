package fuse_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

func TestCloseWithOpenFiles(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	log, lines := newLog()
	s, err := fuse.Mount(dir, fuse.Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	b := fusetest.NewBlob(t, 1<<20, 1)
	path := add(t, s, 0, b)
	b.OnFill(func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() })
	// One child holds the file open, the other waits for data.
	holder := exec.Command("sh", "-c", "exec 3<"+path+"; echo open; read line; cat <&3")
	stdin, stdout := pipes(t, holder)
	reader := exec.Command("cat", path)
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reader to stall", func() bool { return b.Calls.Load() > 0 })
	start := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(start); took > patience {
		t.Errorf("close took %v", took)
	}
	if err := reader.Wait(); err == nil {
		t.Error("a reader got data from a closed server")
	}
	stdin.Close()
	if rest, _ := io.ReadAll(stdout); len(rest) > 0 {
		t.Errorf("an open file gave %d bytes after the server was closed", len(rest))
	}
	if err := holder.Wait(); err == nil {
		t.Error("reading an open file succeeded after the server was closed")
	}
	if got := lines.lines(slog.LevelWarn, "still in use"); len(got) != 1 {
		t.Errorf("want one line about the lazy unmount, got %q", got)
	}
}

// pipes starts a child and returns when it has printed its first line.
func pipes(t *testing.T, cmd *exec.Cmd) (io.WriteCloser, io.Reader) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(stdout)
	if _, err := r.ReadString('\n'); err != nil {
		cmd.Process.Kill()
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return stdin, r
}

// serveElsewhere serves a mount on dir from another process until the returned function kills it.
func serveElsewhere(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	pipes(t, cmd)
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

func TestMountAfterTheServerDied(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	kill := serveElsewhere(t, dir)
	if _, err := fuse.Mount(dir, fuse.Config{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("mount over a living server: %v", err)
	}
	kill()
	s, err := fuse.Mount(dir, fuse.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b := fusetest.NewBlob(t, 5000, 1)
	if got := fusetest.Run(t, "cat", add(t, s, 0, b)); string(got) != string(b.Data) {
		t.Error("wrong bytes")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestMountOnNothing(t *testing.T) {
	if _, err := fuse.Mount(t.TempDir()+"/missing", fuse.Config{}); err == nil {
		t.Error("mounted on a directory that is not there")
	}
}

func TestUnmountedBySomebodyElse(t *testing.T) {
	s := mount(t, fuse.Config{})
	fusetest.Run(t, "umount", strings.TrimSuffix(s.Path(""), "/"))
}

func TestFailureLogIsRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		l := fuse.NewFailureLog(log, 10*time.Second)
		for range 25 {
			l.Failed("a", 0, 4096, io.ErrUnexpectedEOF)
			time.Sleep(time.Second)
		}
		l.Failed("b", 0, 4096, io.ErrUnexpectedEOF)
		if got := lines.lines(slog.LevelError, "blob=a"); len(got) != 3 || !strings.Contains(got[1], "suppressed=9") {
			t.Errorf("want a line every 10 s that counts the others, got %q", got)
		}
		if got := lines.lines(slog.LevelError, "blob=b"); len(got) != 1 {
			t.Errorf("another blob's line was suppressed")
		}
	})
}

func TestInitIsKept(t *testing.T) {
	s := mount(t, fuse.Config{})
	const opInit = 26
	if init := fuse.InitRequest(s); len(init) < 56 || init[4] != opInit {
		t.Errorf("kept request is not INIT: %x", init)
	}
}
