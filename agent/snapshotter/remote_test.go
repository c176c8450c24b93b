package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// tree makes a directory with one file of the given name.
func treeOf(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mounted mounts what Prepare, View or Mounts returned until the test ends.
func mounted(t *testing.T, mounts []mount.Mount, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// names lists a directory, as one string.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// unpack makes a committed normal snapshot with one file.
func unpack(t *testing.T, s *Snapshotter, name, parent, file string) {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), name+"-key", parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, file), []byte(file), 0o644)
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), name, name+"-key"); err != nil {
		t.Fatal(err)
	}
}

// offer prepares a layer that has to become remote, and returns the name of its snapshot.
func offer(t *testing.T, s *Snapshotter, parent string, chainID digest.Digest) string {
	t.Helper()
	if _, err := s.Prepare(t.Context(), "extract-1 "+chainID.String(), parent, pulled("image", chainID)); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("offered %s: %v", chainID, err)
	}
	var name string
	err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		name = info.Name
		return nil
	}, fmt.Sprintf(`kind==committed,labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, chainID, parent)) // containerd's own query
	if err != nil || name == "" {
		t.Fatalf("containerd does not find the remote snapshot of %s: %v", chainID, err)
	}
	return name
}

func lowerdirs(mounts []mount.Mount) []string {
	for _, o := range mounts[0].Options {
		if list, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(list, ":")
		}
	}
	return nil
}

// TestPrepareOffered is the table of the remote snapshot protocol: what a client offers, what Images say, what comes of it.
func TestPrepareOffered(t *testing.T) {
	known, unknown := chainOf("known"), chainOf("unknown")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		labels snapshots.Opt
		fail   error
		strict bool
		asked  int
		remote bool
		err    func(error) bool // nil: an active snapshot
		log    string           // has to be in the log
	}{
		{name: "found", labels: pulled("r/image:1", known), asked: 1, remote: true, err: errdefs.IsAlreadyExists},
		{name: "found by its chain ID only", labels: snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: known.String()}), asked: 1, remote: true, err: errdefs.IsAlreadyExists},
		{name: "no block image", labels: pulled("r/image:1", unknown), asked: 1, log: "level=INFO msg=\"no block image, layers are unpacked\" ref=r/image:1"},
		{name: "look-up fails", labels: pulled("r/image:1", known), fail: blockfmt.ErrTransient, asked: 1, log: "level=WARN msg=\"block image cannot be looked up, layers are unpacked\" ref=r/image:1"},
		{name: "look-up fails, strict", labels: pulled("r/image:1", known), fail: blockfmt.ErrDenied, strict: true, asked: 1, err: errdefs.IsUnavailable},
		{name: "no block image, strict", labels: pulled("r/image:1", unknown), strict: true, asked: 1},
		{name: "client is gone", ctx: cancelled, labels: pulled("r/image:1", known), err: func(err error) bool { return errors.Is(err, context.Canceled) }},
		{name: "not offered", labels: snapshots.WithLabels(nil), log: "level=INFO msg=\"the client unpacks an image without asking"},
		{name: "target is no chain ID", labels: snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "mine"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log logBuffer
			images := newFake(map[digest.Digest]string{known: t.TempDir()})
			images.fail = c.fail
			s := open(t, Config{Strict: c.strict, Log: log.logger()}, images)
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			mounts, err := s.Prepare(c.ctx, "default/7/extract-1 "+known.String(), "", c.labels)
			if c.err == nil && (err != nil || len(mounts) != 1 || mounts[0].Type != "bind") {
				t.Errorf("got %v, %v, want a bind mount", mounts, err)
			}
			if c.err != nil && (!c.err(err) || mounts != nil) {
				t.Errorf("got %v, %v", mounts, err)
			}
			if len(images.requests) != c.asked {
				t.Errorf("Images were asked %d times, want %d", len(images.requests), c.asked)
			}
			info, err := s.Stat(t.Context(), known.String())
			if (err == nil) != c.remote || c.remote && (info.Kind != snapshots.KindCommitted || info.Labels[LabelRemote] != known.String()) {
				t.Errorf("remote snapshot: %+v, %v", info, err)
			}
			if !strings.Contains(strings.Join(log.lines(), "\n"), c.log) {
				t.Errorf("log: %q, want %q in it", log.lines(), c.log)
			}
		})
	}
}

// TestRequest: everything that the labels say about the image reaches Images, and what is malformed does not.
func TestRequest(t *testing.T) {
	images := newFake(nil)
	s := open(t, Config{}, images)
	labels := map[string]string{
		snapshots.LabelSnapshotRef: chainOf("a").String(), snapshotters.TargetRefLabel: "r/image:1",
		snapshotters.TargetManifestDigestLabel: "sha256:zz", LabelRemote: chainOf("forged").String(),
	}
	if _, err := s.Prepare(t.Context(), "a", "", snapshots.WithLabels(labels)); err != nil {
		t.Fatal(err)
	}
	got := images.requests[0]
	if got.Ref != "r/image:1" || got.Manifest != "" || got.ChainID != chainOf("a") || got.Labels[snapshotters.TargetRefLabel] != "r/image:1" || got.Labels[LabelRemote] != "" {
		t.Errorf("request: %+v", got)
	}
}

// TestUnpackedImageIsToldOnce: five layers, one line; the same image again, one more.
func TestUnpackedImageIsToldOnce(t *testing.T) {
	var log logBuffer
	s := open(t, Config{Log: log.logger()}, newFake(nil))
	for range 2 {
		parent := ""
		for i := range 5 {
			key := fmt.Sprint("extract-", i)
			if _, err := s.Prepare(t.Context(), key, parent, pulled("r/image:1", chainOf(key))); err != nil {
				t.Fatal(err)
			}
			parent = fmt.Sprint("layer-", i)
			if err := s.Commit(t.Context(), parent, key); err != nil {
				t.Fatal(err)
			}
		}
		for i := 4; i >= 0; i-- {
			if err := s.Remove(t.Context(), fmt.Sprint("layer-", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lines := log.lines(); len(lines) != 2 {
		t.Errorf("%d lines, want one for each pull:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

// TestOneTreeForAllLayers: a container on five remote layers is on one mount, of the topmost.
func TestOneTreeForAllLayers(t *testing.T) {
	images := newFake(map[digest.Digest]string{})
	s := open(t, Config{}, images)
	parent := ""
	for i := range 5 {
		chainID := chainOf(fmt.Sprint("layer", i))
		images.dirs[chainID] = treeOf(t, fmt.Sprint("file", i))
		parent = offer(t, s, parent, chainID)
	}
	if images.calls != 0 {
		t.Errorf("%d trees were mounted by pulling", images.calls)
	}
	mounts, err := s.Prepare(t.Context(), "container", parent)
	if dir := mounted(t, mounts, err); names(t, dir) != "file4" {
		t.Errorf("the container sees %q", names(t, dir))
	}
	if lower := lowerdirs(mounts); len(lower) != 1 || images.calls != 1 {
		t.Errorf("lower directories %v after %d mounts, want one of one", lower, images.calls)
	}
	if _, err := s.Mounts(t.Context(), "container"); err != nil || images.calls != 1 {
		t.Errorf("Mounts: %v, trees were mounted %d times, want 1", err, images.calls)
	}
	images.holds(t, chainOf("layer4"), 1)
	if err := s.Remove(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	images.holds(t, chainOf("layer4"), 0)
}

func TestViewOfRemote(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): treeOf(t, "file")})
	s := open(t, Config{}, images)
	mounts, err := s.View(t.Context(), "view", offer(t, s, "", chainOf("a")))
	dir := mounted(t, mounts, err)
	if names(t, dir) != "file" || mounts[0].Type != "bind" || mounts[0].Source != images.dirs[chainOf("a")] {
		t.Errorf("view is %v with %q", mounts, names(t, dir))
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err == nil {
		t.Error("a view can be written to")
	}
	if usage, err := s.Usage(t.Context(), "view"); err != nil || usage != (snapshots.Usage{}) {
		t.Errorf("usage of a view: %+v, %v", usage, err)
	}
}

// TestLayersInAnyOrder: normal and remote snapshots lie on each other as pulls of related images leave them.
func TestLayersInAnyOrder(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("r1"): treeOf(t, "r1"), chainOf("r2"): treeOf(t, "r2")})
	s := open(t, Config{}, images)
	unpack(t, s, "n1", "", "n1")
	r1 := offer(t, s, "n1", chainOf("r1")) // its tree has what n1 has, too: here it shows that n1 is not used
	r2 := offer(t, s, r1, chainOf("r2"))
	unpack(t, s, "n2", r2, "n2")
	unpack(t, s, "n3", "n2", "n3")
	images.holds(t, chainOf("r2"), 0)

	mounts, err := s.Prepare(t.Context(), "container", "n3")
	if got := names(t, mounted(t, mounts, err)); got != "n2 n3 r2" {
		t.Errorf("the container sees %q", got)
	}
	mounts, err = s.View(t.Context(), "view", "n2")
	if got := names(t, mounted(t, mounts, err)); got != "n2 r2" {
		t.Errorf("the view sees %q", got)
	}
	images.holds(t, chainOf("r2"), 2)
	images.holds(t, chainOf("r1"), 0)
	if err := s.Remove(t.Context(), r2); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a remote snapshot with children: %v", err)
	}
}

// TestNamespacesShare: containerd's namespaces have snapshots of the same chain on different parents.
func TestNamespacesShare(t *testing.T) {
	chainID := chainOf("a")
	images := newFake(map[digest.Digest]string{chainID: t.TempDir()})
	s := open(t, Config{}, images)
	unpack(t, s, "one/1/base", "", "f")
	unpack(t, s, "two/2/base", "", "f")
	first, again := offer(t, s, "one/1/base", chainID), offer(t, s, "one/1/base", chainID)
	second := offer(t, s, "two/2/base", chainID)
	if first != again || first == second {
		t.Errorf("snapshots of a chain: %q, again %q, on another parent %q", first, again, second)
	}
	if got := s.Chains(); !slices.Equal(got, []digest.Digest{chainID}) {
		t.Errorf("chains: %v", got)
	}
	if err := s.Remove(t.Context(), first); err != nil || len(images.forgotten) > 0 {
		t.Errorf("remove the first: %v, forgotten %v", err, images.forgotten)
	}
	if err := s.Remove(t.Context(), second); err != nil || !slices.Equal(images.forgotten, []digest.Digest{chainID}) {
		t.Errorf("remove the last: %v, forgotten %v", err, images.forgotten)
	}
	if got := s.Chains(); len(got) != 0 {
		t.Errorf("chains: %v", got)
	}
}

// TestOfferOnMissingParent leaves nothing, neither here nor in Images.
func TestOfferOnMissingParent(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	if _, err := s.Prepare(t.Context(), "key", "missing", pulled("image", chainOf("a"))); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(images.forgotten, []digest.Digest{chainOf("a")}) || len(s.Chains()) != 0 {
		t.Errorf("forgotten %v, chains %v", images.forgotten, s.Chains())
	}
}

// TestLabelsCannotBeForged: no client can make a snapshot remote, or normal.
func TestLabelsCannotBeForged(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): t.TempDir()})
	s := open(t, Config{}, images)
	forged := snapshots.WithLabels(map[string]string{LabelRemote: chainOf("a").String(), "mine": "1"})
	if _, err := s.Prepare(t.Context(), "key", "", forged); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "normal", "key", forged); err != nil {
		t.Fatal(err)
	}
	remote := offer(t, s, "", chainOf("a"))
	for _, name := range []string{"normal", remote} {
		for _, paths := range [][]string{nil, {"labels"}, {"labels." + LabelRemote, "labels.mine"}} {
			for _, value := range []string{"", chainOf("b").String()} {
				labels := map[string]string{LabelRemote: value, "mine": "2"}
				info, err := s.Update(t.Context(), snapshots.Info{Name: name, Labels: labels}, paths...)
				if err != nil || info.Labels["mine"] != "2" {
					t.Errorf("update %v of %q: %+v, %v", paths, name, info, err)
				}
				stored, err := s.Stat(t.Context(), name)
				want := map[string]string{"normal": "", remote: chainOf("a").String()}[name]
				if err != nil || stored.Labels[LabelRemote] != want || info.Labels[LabelRemote] != want {
					t.Errorf("after update %v of %q: %q, %q, want %q", paths, name, stored.Labels, info.Labels, want)
				}
			}
		}
	}
}

func TestUsageAndCommit(t *testing.T) {
	images := newFake(map[digest.Digest]string{chainOf("a"): treeOf(t, "big")})
	s := open(t, Config{}, images)
	remote := offer(t, s, "", chainOf("a"))
	if usage, err := s.Usage(t.Context(), remote); err != nil || usage != (snapshots.Usage{}) {
		t.Errorf("usage of a remote snapshot: %+v, %v", usage, err)
	}
	mounts, err := s.Prepare(t.Context(), "active", remote)
	dir := mounted(t, mounts, err)
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	active, err := s.Usage(t.Context(), "active")
	if err != nil || active.Size < 1<<20 || active.Size > 2<<20 || active.Inodes != 2 {
		t.Errorf("usage of an active snapshot: %+v, %v", active, err)
	}
	if err := s.Commit(t.Context(), "committed", "active"); err != nil {
		t.Fatal(err)
	}
	images.holds(t, chainOf("a"), 0)
	if usage, err := s.Usage(t.Context(), "committed"); err != nil || usage != active {
		t.Errorf("usage of the committed snapshot: %+v, %v, want %+v", usage, err, active)
	}
}
