package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
)

// checkDirectories fails the test unless the snapshotter has this many directories of snapshots.
func checkDirectories(t *testing.T, s *Snapshotter, want int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != want {
		t.Errorf("%d directories, want %d: %v", len(entries), want, entries)
	}
}

// TestMountFails: the container is refused with an error that says which image, and nothing of it stays.
func TestMountFails(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", chainOf("a"))
	images.fail = blockfmt.ErrTransient
	_, err := s.Prepare(t.Context(), "container", remote)
	if !errdefs.IsUnavailable(err) || !errors.Is(err, blockfmt.ErrTransient) || !strings.Contains(err.Error(), `block image of "image"`) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Stat(t.Context(), "container"); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot is there: %v", err)
	}
	checkDirectories(t, s, 0)
	images.fail = nil
	if _, err := s.Prepare(t.Context(), "container", remote); err != nil {
		t.Errorf("second try: %v", err)
	}
}

// TestImageIsGone: it is looked for again, with what was known when it was pulled.
func TestImageIsGone(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", chainOf("a"))
	images.resolves[chainOf("a")] = images.dirs[chainOf("a")]
	delete(images.dirs, chainOf("a"))
	images.requests = nil
	if _, err := s.Prepare(t.Context(), "container", remote); err != nil {
		t.Fatal(err)
	}
	if len(images.requests) != 1 || images.requests[0].Ref != "image" || images.requests[0].Manifest != digest.FromString("image") {
		t.Errorf("Images were asked for %+v", images.requests)
	}
	delete(images.dirs, chainOf("a"))
	delete(images.resolves, chainOf("a"))
	if _, err := s.View(t.Context(), "view", remote); !errdefs.IsUnavailable(err) || !errors.Is(err, blockfmt.ErrNotFound) || errdefs.IsNotFound(err) {
		t.Errorf("image is nowhere: %v", err)
	}
}

// TestParentIsReplaced while the tree is being mounted: the snapshot would lie on another parent than its mounts.
func TestParentIsReplaced(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", chainOf("a"))
	unpack(t, s, "parent", remote, "f")
	images.onMount = func() {
		images.onMount = nil
		if err := s.Remove(t.Context(), "parent"); err != nil {
			t.Error(err)
		}
		unpack(t, s, "parent", "", "g")
	}
	if _, err := s.Prepare(t.Context(), "container", "parent"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("parent's data is gone: %v", err)
	}
	images.holds(t, chainOf("a"), 0)
	images.onMount = func() {
		images.onMount = nil
		if err := s.Remove(t.Context(), remote); err != nil {
			t.Error(err)
		}
		offer(t, s, "", chainOf("a"))
	}
	if _, err := s.Prepare(t.Context(), "container", remote); !errdefs.IsUnavailable(err) {
		t.Errorf("parent is another one: %v", err)
	}
	images.holds(t, chainOf("a"), 0)
	images.onMount = func() {
		images.onMount = nil
		if err := s.Remove(t.Context(), remote); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Prepare(t.Context(), "container", remote); !errdefs.IsNotFound(err) {
		t.Errorf("parent is removed: %v", err)
	}
	images.holds(t, chainOf("a"), 0)
	checkDirectories(t, s, 1)
}

// TestRemovedWhileMounting: Mounts mounts the tree of a snapshot that is gone by then, and gives it back.
func TestRemovedWhileMounting(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	if _, err := s.Prepare(t.Context(), "container", offer(t, s, "", chainOf("a"))); err != nil {
		t.Fatal(err)
	}
	info, err := s.load(t.Context(), "container")
	if err != nil {
		t.Fatal(err)
	}
	s.release(info.id) // as if the agent had been restarted while the image could not be mounted
	images.onMount = func() {
		images.onMount = nil
		if err := s.Remove(t.Context(), "container"); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Mounts(t.Context(), "container"); err == nil {
		t.Error("a removed snapshot has mounts")
	}
	images.holds(t, chainOf("a"), 0)
}

// TestConcurrentMounts of a snapshot whose tree is not mounted: one Mount for all of them.
func TestConcurrentMounts(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	if _, err := s.Prepare(t.Context(), "container", offer(t, s, "", chainOf("a"))); err != nil {
		t.Fatal(err)
	}
	snap, err := s.load(t.Context(), "container")
	if err != nil {
		t.Fatal(err)
	}
	s.release(snap.id)
	images.calls = 0
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if mounts, err := s.Mounts(t.Context(), "container"); err != nil || len(lowerdirs(mounts)) != 1 {
				t.Errorf("%v, %v", mounts, err)
			}
		})
	}
	wg.Wait()
	if images.calls != 1 {
		t.Errorf("the tree was mounted %d times", images.calls)
	}
	images.holds(t, chainOf("a"), 1)
}

// TestConcurrentLife creates and removes snapshots on one chain from many goroutines, with cleanups in between.
func TestConcurrentLife(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", chainOf("a"))
	var wg sync.WaitGroup
	for _, key := range strings.Split("a b c d e f g h", " ") {
		wg.Go(func() {
			for range 20 {
				if _, err := s.Prepare(t.Context(), key, remote); err != nil {
					t.Error(err)
				}
				if err := s.Cleanup(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := s.Mounts(t.Context(), key); err != nil {
					t.Error(err)
				}
				if err := s.Remove(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	images.holds(t, chainOf("a"), 0)
	checkDirectories(t, s, 0)
}

// TestRecordCannotBeWritten: an ID that is given out again starts with an empty directory.
func TestRecordCannotBeWritten(t *testing.T) {
	s := open(t, Config{}, newFake(nil))
	if err := os.MkdirAll(filepath.Join(s.upper("1"), "of another"), 0o755); err != nil {
		t.Fatal(err)
	}
	mounts, err := s.Prepare(t.Context(), "key", "")
	if err != nil || mounts[0].Source != s.upper("1") || names(t, s.upper("1")) != "" {
		t.Errorf("new snapshot has %q in %v: %v", names(t, s.upper("1")), mounts, err)
	}
}

// TestDiskFull: what cannot be recorded is refused and leaves nothing that counts; with room again, all works.
func TestDiskFull(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{Root: root}, images)
	remote := offer(t, s, "", chainOf("a"))
	before := len(s.Chains())
	full := filepath.Join(root, "full")
	if err := os.WriteFile(full, make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	refused := 0
	for i := range 500 { // until the database has to grow
		if _, err := s.Prepare(t.Context(), fmt.Sprint("container", i), remote); err != nil {
			refused++
		}
		chainID := chainOf(fmt.Sprint(i))
		images.dirs[chainID] = root
		if _, err := s.Prepare(t.Context(), "extract", "", pulled("image", chainID)); !errdefs.IsAlreadyExists(err) {
			refused++
		} else {
			before++
		}
	}
	if refused == 0 {
		t.Fatal("a full disk took everything")
	}
	if got := len(s.Chains()); got != before {
		t.Errorf("%d chains are known, %d were recorded", got, before)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.Prepare(t.Context(), "after", remote); err != nil {
		t.Errorf("with room again: %v", err)
	}
	users := 0
	if err := s.Walk(t.Context(), func(context.Context, snapshots.Info) error { users++; return nil }, "kind==active"); err != nil {
		t.Fatal(err)
	}
	checkDirectories(t, s, users)
	images.holds(t, chainOf("a"), users)
}

// TestInodeTableFull: a snapshot without directories is refused, leaves nothing behind, and is no obstacle later.
func TestInodeTableFull(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "nr_inodes=40"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, Config{Root: root}, newFake(nil))
	made := 0
	for ; ; made++ {
		_, err := s.Prepare(t.Context(), fmt.Sprint("container", made), "")
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil || made > 40 {
			t.Fatalf("snapshot %d: %v, want ENOSPC before", made, err)
		}
	}
	checkDirectories(t, s, made)
	if err := s.Remove(t.Context(), "container0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), fmt.Sprint("container", made), ""); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestDataWasDeleted: every use of it is refused with an error that says so, and it can be removed.
func TestDataWasDeleted(t *testing.T) {
	s := open(t, Config{}, newFake(nil))
	unpack(t, s, "layer", "", "f")
	if _, err := s.Prepare(t.Context(), "container", "layer"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.dir("1")); err != nil {
		t.Fatal(err)
	}
	_, err1 := s.Mounts(t.Context(), "container")
	_, err2 := s.Prepare(t.Context(), "another", "layer")
	_, err3 := s.View(t.Context(), "view", "layer")
	for _, err := range []error{err1, err2, err3} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "pull the image again") {
			t.Errorf("got %v", err)
		}
	}
	if err := os.RemoveAll(s.dir("2")); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "broken", "container"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("commit: %v", err)
	}
	for _, key := range []string{"container", "layer"} {
		if err := s.Remove(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	checkDirectories(t, s, 0)
}

func TestIDMap(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	mapped := map[string]string{snapshots.LabelSnapshotUIDMapping: "1:5:1,0:1000:65536", snapshots.LabelSnapshotGIDMapping: "0:2000:65536"}
	unpack(t, s, "layer", "", "f")
	mounts, err := s.Prepare(t.Context(), "container", "layer", snapshots.WithLabels(mapped))
	if err != nil {
		t.Fatal(err)
	}
	if o := mounts[0].Options; !slices.Contains(o, "uidmap=1:5:1,0:1000:65536") || !slices.Contains(o, "gidmap=0:2000:65536") {
		t.Errorf("options: %v", o)
	}
	st, err := os.Stat(s.upper("2"))
	if sys := st.Sys().(*syscall.Stat_t); err != nil || sys.Uid != 1000 || sys.Gid != 2000 {
		t.Errorf("the upper directory belongs to %d:%d, %v", sys.Uid, sys.Gid, err)
	}
	remote := offer(t, s, "", chainOf("a"))
	if _, err := s.Prepare(t.Context(), "on-remote", remote, snapshots.WithLabels(mapped)); !errdefs.IsNotImplemented(err) {
		t.Errorf("on a block image: %v", err)
	}
	images.holds(t, chainOf("a"), 0)
	for _, bad := range []string{"0:1000", "x:1:1", "1:1000:1", "0:1000:0", "0:-1:1", "0:1000:1:1"} {
		mapped := map[string]string{snapshots.LabelSnapshotUIDMapping: bad, snapshots.LabelSnapshotGIDMapping: "0:0:1"}
		if _, err := s.View(t.Context(), "bad", "layer", snapshots.WithLabels(mapped)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("mapping %q: %v", bad, err)
		}
	}
	// The labels of a layer come from its manifest.
	mapped[snapshots.LabelSnapshotRef] = chainOf("unknown").String()
	mounts, err = s.Prepare(t.Context(), "extract", "", snapshots.WithLabels(mapped))
	if err != nil || len(mounts[0].Options) != 2 {
		t.Errorf("a manifest decides about owners on the host: %v, %v", mounts, err)
	}
	checkDirectories(t, s, 3)
}

// FuzzIDMap: what is accepted maps root to an ID that the kernel can have.
func FuzzIDMap(f *testing.F) {
	for _, seed := range []string{"0:1000:65536", "1:5:1,0:1000:65536", "", ",", "0:0:0", "0:4294967296:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, mapping string) {
		root, err := hostRoot(mapping)
		if err == nil && (root < 0 || root >= 1<<31) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q maps root to %d, %v", mapping, root, err)
		}
	})
}

// TestOwnerOfRoot: a container's root directory belongs to whom its parent's does, whether that is a tree or not.
func TestOwnerOfRoot(t *testing.T) {
	tree := t.TempDir()
	if err := os.Chown(tree, 70_000, 70_001); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{}, newFake(map[digest.Digest]string{chainOf("a"): tree}))
	unpack(t, s, "layer", offer(t, s, "", chainOf("a")), "f")
	mounts, err := s.Prepare(t.Context(), "container", "layer")
	st, serr := os.Stat(mounted(t, mounts, err))
	if serr != nil {
		t.Fatal(serr)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 70_000 || sys.Gid != 70_001 || st.Mode().Perm() != 0o755 {
		t.Errorf("root directory: %d:%d %v", sys.Uid, sys.Gid, st.Mode())
	}
}

func TestBadConfig(t *testing.T) {
	if _, err := Open(t.Context(), Config{Root: "relative"}, newFake(nil)); err == nil {
		t.Error("opened a relative root")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Root: file}, newFake(nil)); err == nil {
		t.Error("opened a file")
	}
	// A label only says something if it is well-formed.
	if req := requestOf(map[string]string{snapshotters.TargetManifestDigestLabel: "latest"}, chainOf("a")); req.Manifest != "" {
		t.Errorf("manifest %q", req.Manifest)
	}
}
