package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// reopen is what a restart of the agent does: all trees are unmounted, and may be mounted elsewhere.
func reopen(t *testing.T, s *Snapshotter, images *fakeImages, log *logBuffer) *Snapshotter {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, Config{Root: s.cfg.Root, Log: log.logger()}, images)
}

// TestRestart: what is in use is mounted again, where its tree is now, and the rest is as it was.
func TestRestart(t *testing.T) {
	var log logBuffer
	a, b := chainOf("a"), chainOf("b")
	s := open(t, Config{}, newFake(map[digest.Digest]string{a: treeOf(t, "old"), b: t.TempDir()}))
	remote := offer(t, s, "", a)
	offer(t, s, remote, b)
	unpack(t, s, "layer", remote, "f")
	if _, err := s.Prepare(t.Context(), "container", "layer"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(t.Context(), "view", remote); err != nil {
		t.Fatal(err)
	}
	images := newFake(map[digest.Digest]string{a: treeOf(t, "new"), b: t.TempDir()})
	s = reopen(t, s, images, &log)
	images.holds(t, a, 2)
	images.holds(t, b, 0)
	chains := s.Chains()
	slices.Sort(chains)
	if want := slices.Sorted(slices.Values([]digest.Digest{a, b})); !slices.Equal(chains, want) {
		t.Errorf("chains %v, want %v", chains, want)
	}
	mounts, err := s.Mounts(t.Context(), "container")
	if got := names(t, mounted(t, mounts, err)); got != "f new" {
		t.Errorf("the container sees %q", got)
	}
	mounts, err = s.Mounts(t.Context(), "view")
	if got := names(t, mounted(t, mounts, err)); got != "new" {
		t.Errorf("the view sees %q", got)
	}
	images.holds(t, a, 2)
	if lines := log.lines(); !slices.Equal(lines, []string{""}) {
		t.Errorf("log: %q", lines)
	}
}

// TestRestartWithoutImage: Open does not fail; each image that cannot be mounted is tried and told once, and again when
// containerd asks.
func TestRestartWithoutImage(t *testing.T) {
	var log logBuffer
	a := chainOf("a")
	images := newFake(map[digest.Digest]string{a: treeOf(t, "f")})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", a)
	for _, key := range []string{"one", "two"} {
		if _, err := s.Prepare(t.Context(), key, remote); err != nil {
			t.Fatal(err)
		}
	}
	images = newFake(map[digest.Digest]string{})
	s = reopen(t, s, images, &log)
	if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "level=ERROR") || !strings.Contains(lines[0], a.String()) {
		t.Errorf("log: %q", lines)
	}
	if _, err := s.Mounts(t.Context(), "one"); !errdefs.IsUnavailable(err) {
		t.Errorf("mounts without the image: %v", err)
	}
	images.resolves[a] = treeOf(t, "found")
	mounts, err := s.Mounts(t.Context(), "one")
	if got := names(t, mounted(t, mounts, err)); got != "found" {
		t.Errorf("the container sees %q", got)
	}
	if err := s.Remove(t.Context(), "two"); err != nil { // which holds no tree
		t.Error(err)
	}
	images.holds(t, a, 1)
}

// TestOpenIsCancelled gives back what it had mounted.
func TestOpenIsCancelled(t *testing.T) {
	a := chainOf("a")
	images := newFake(map[digest.Digest]string{a: t.TempDir()})
	s := open(t, Config{}, images)
	if _, err := s.Prepare(t.Context(), "container", offer(t, s, "", a)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	images = newFake(images.dirs)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mounts := 0
	images.onMount = func() { mounts++ }
	late := lateCancel{images, cancel}
	if _, err := Open(ctx, Config{Root: s.cfg.Root}, late); err == nil || mounts != 1 {
		t.Errorf("got %v after %d mounts", err, mounts)
	}
	images.holds(t, a, 0)
}

// lateCancel cancels when a tree has been mounted.
type lateCancel struct {
	*fakeImages
	cancel func()
}

func (l lateCancel) Mount(ctx context.Context, chainID digest.Digest) (string, error) {
	defer l.cancel()
	return l.fakeImages.Mount(ctx, chainID)
}

// stuck Images do not answer until they are told to stop.
type stuck struct{ *fakeImages }

func (stuck) Mount(ctx context.Context, _ digest.Digest) (string, error) {
	<-ctx.Done()
	return "", blockfmt.ErrTransient
}

func (stuck) Resolve(ctx context.Context, _ Request) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestStuckImages: no call waits for Images longer than the timeout, and Open not once for each image.
func TestStuckImages(t *testing.T) {
	dir := t.TempDir()
	images := newFake(map[digest.Digest]string{})
	s := open(t, Config{Root: dir}, images)
	for _, name := range strings.Split("a b c d e f g h i j k l m n o p q r s t", " ") {
		images.dirs[chainOf(name)] = dir
		if _, err := s.Prepare(t.Context(), name, offer(t, s, "", chainOf(name))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s, err := Open(t.Context(), Config{Root: dir, Timeout: time.Minute}, stuck{images})
		if took := time.Since(start); err != nil || took != time.Minute {
			t.Fatalf("Open took %v: %v", took, err)
		}
		defer s.Close()
		start = time.Now()
		if _, err := s.Mounts(t.Context(), "a"); !errdefs.IsUnavailable(err) {
			t.Errorf("mounts: %v", err)
		}
		if _, err := s.Prepare(t.Context(), "extract", "", pulled("image", chainOf("z"))); err != nil {
			t.Errorf("a layer is unpacked: %v", err)
		}
		if took := time.Since(start); took != 2*time.Minute {
			t.Errorf("two calls took %v", took)
		}
	})
}

// TestReconcile: directories without a record go, lost data is told, and what has none is repaired.
func TestReconcile(t *testing.T) {
	var log logBuffer
	images := newFake(map[digest.Digest]string{chainOf("a"): treeOf(t, "f")})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", chainOf("a"))
	unpack(t, s, "lost", "", "f")
	if _, err := s.View(t.Context(), "view", remote); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(t.Context(), "empty", ""); err != nil {
		t.Fatal(err)
	}
	entries, err := filepath.Glob(filepath.Join(s.cfg.Root, "snapshots", "*"))
	if err != nil || len(entries) != 3 {
		t.Fatalf("directories %v, %v", entries, err)
	}
	for _, dir := range entries {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, orphan := range []string{"new-123", "rm-77", "99", "stray"} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Root, "snapshots", orphan, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s, images, &log)
	checkDirectories(t, s, 2) // of the views
	if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "snapshot=lost") {
		t.Errorf("log: %q", lines)
	}
	mounts, err := s.Mounts(t.Context(), "view")
	if got := names(t, mounted(t, mounts, err)); got != "f" {
		t.Errorf("the view sees %q", got)
	}
	mounts, err = s.Mounts(t.Context(), "empty")
	if got := names(t, mounted(t, mounts, err)); got != "" {
		t.Errorf("the empty view sees %q", got)
	}
	if err := s.Remove(t.Context(), "lost"); err != nil {
		t.Error(err)
	}
}

// TestCleanup removes what is nobody's while others are used.
func TestCleanup(t *testing.T) {
	s := open(t, Config{}, newFake(nil))
	unpack(t, s, "layer", "", "f")
	for _, orphan := range []string{"new-123", "99"} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Root, "snapshots", orphan, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := snapshots.Cleaner(s).Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkDirectories(t, s, 1)
	if _, err := s.View(t.Context(), "view", "layer"); err != nil {
		t.Error(err)
	}
}

// TestDatabaseInUse: a second process is told so within a bound, instead of waiting for ever.
func TestDatabaseInUse(t *testing.T) {
	s := open(t, Config{}, newFake(nil))
	if _, err := Open(t.Context(), Config{Root: s.cfg.Root}, newFake(nil)); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("got %v", err)
	}
}
