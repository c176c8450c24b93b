package snapshotter

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

// crashRoot in the environment makes the test binary the process that TestKill kills.
const crashRoot = "XYLEM_CRASH_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(crashRoot); root != "" {
		if err := liveUntilKilled(root); err != nil {
			fmt.Println("error", err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// liveUntilKilled pulls, unpacks, commits and removes from some goroutines and prints what it has done, after it is done.
func liveUntilKilled(root string) error {
	ctx := context.Background()
	chainID := chainOf("a")
	s, err := Open(ctx, Config{Root: filepath.Join(root, "root")}, newFake(map[digest.Digest]string{chainID: filepath.Join(root, "tree")}))
	if err != nil {
		return err
	}
	if _, err := s.Prepare(ctx, "extract", "", pulled("image", chainID)); !errdefs.IsAlreadyExists(err) {
		return err
	}
	failed := make(chan error)
	for worker := range 4 {
		go func() {
			for i := 0; ; i++ {
				if err := liveOnce(ctx, s, fmt.Sprintf("%d-%d-%d", os.Getpid(), worker, i), chainID.String()); err != nil {
					failed <- err
				}
			}
		}()
	}
	return <-failed
}

// liveOnce leaves a committed snapshot and an active one, and has removed another.
func liveOnce(ctx context.Context, s *Snapshotter, name, remote string) error {
	mounts, err := s.Prepare(ctx, name+"-key", remote)
	if err != nil {
		return err
	}
	var upper string
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
	}
	if err := os.WriteFile(filepath.Join(upper, "file"), []byte(name), 0o644); err != nil {
		return err
	}
	if err := s.Commit(ctx, name, name+"-key"); err != nil {
		return err
	}
	fmt.Println("committed", name)
	if _, err := s.Prepare(ctx, name+"-active", name); err != nil {
		return err
	}
	fmt.Println("active", name+"-active")
	if _, err := s.View(ctx, name+"-view", name); err != nil {
		return err
	}
	if err := s.Remove(ctx, name+"-view"); err != nil {
		return err
	}
	fmt.Println("removed", name+"-view")
	return nil
}

// TestKill kills a process at whatever it does and opens what it left, again and again on the same directory: what it
// had said to be done is done, and whatever else is there is whole.
func TestKill(t *testing.T) {
	root := t.TempDir()
	tree := filepath.Join(root, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for round := range 12 {
		done := killAfter(t, root, 3+round*5)
		var log logBuffer
		images := newFake(map[digest.Digest]string{chainOf("a"): tree})
		s := open(t, Config{Root: filepath.Join(root, "root"), Log: log.logger()}, images)
		checkDone(t, s, done)
		checkWhole(t, s, images)
		if lines := log.lines(); len(lines) != 1 || lines[0] != "" {
			t.Errorf("round %d: log: %q", round, lines)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killAfter runs the process until it has printed n lines, kills it, and returns all that it printed.
func killAfter(t *testing.T, root string, n int) (lines []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashRoot+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for scan := bufio.NewScanner(out); scan.Scan(); {
		if lines = append(lines, scan.Text()); len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" || len(lines) < n {
		t.Fatalf("the process was not killed at work: %v, %q", err, lines)
	}
	return lines
}

func checkDone(t *testing.T, s *Snapshotter, lines []string) {
	t.Helper()
	kinds := map[string]snapshots.Kind{"committed": snapshots.KindCommitted, "active": snapshots.KindActive}
	for _, line := range lines {
		what, name, ok := strings.Cut(line, " ")
		if !ok || what == "error" {
			t.Fatalf("the process said %q", line)
		}
		info, err := s.Stat(t.Context(), name)
		if kind, there := kinds[what]; there && (err != nil || info.Kind != kind) || !there && !errdefs.IsNotFound(err) {
			t.Errorf("after %q: %+v, %v", line, info, err)
		}
	}
}

// checkWhole: records and directories are the same set, committed data is what was written, and every snapshot works.
func checkWhole(t *testing.T, s *Snapshotter, images *fakeImages) {
	t.Helper()
	directories, users := 0, 0
	err := s.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		switch {
		case info.Labels[LabelRemote] != "":
			return nil
		case info.Kind == snapshots.KindCommitted:
			if got, err := committedFile(ctx, s, info.Name); err != nil || got != info.Name {
				t.Errorf("data of %q is %q, %v", info.Name, got, err)
			}
		default:
			if _, err := s.Mounts(ctx, info.Name); err != nil {
				t.Errorf("mounts of %q: %v", info.Name, err)
			}
			users++
		}
		directories++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checkDirectories(t, s, directories)
	images.holds(t, chainOf("a"), users)
}

// committedFile reads the file of a committed snapshot where overlayfs would.
func committedFile(ctx context.Context, s *Snapshotter, name string) (string, error) {
	var id string
	err := s.read(ctx, func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, name)
		return err
	})
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(s.upper(id), "file"))
	return string(text), err
}
