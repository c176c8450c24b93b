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

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// suiteName makes the suite expect what overlayfs does: directories of lower layers cannot be renamed.
const suiteName = "overlayfs"

// TestSuite runs containerd's own tests of a snapshotter.
func TestSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := Open(ctx, Config{Root: root}, newFake(nil))
		return s, nil, err
	})
}

// TestSuiteOnRemote runs them with a remote snapshot below everything that the tests believe to have no parent.
func TestSuiteOnRemote(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		tree := filepath.Join(root, "tree")
		if err := os.Mkdir(tree, 0o755); err != nil {
			return nil, nil, err
		}
		images := newFake(map[digest.Digest]string{chainOf("base"): tree})
		s, err := Open(ctx, Config{Root: root}, images)
		if err != nil {
			return nil, nil, err
		}
		if _, err := s.Prepare(ctx, "extract", "", pulled("base", chainOf("base"))); !errdefs.IsAlreadyExists(err) {
			return nil, nil, err
		}
		return onRemote{s, chainOf("base").String()}, nil, nil
	})
}

// TestSuiteOverGRPC runs them as containerd talks to us.
func TestSuiteOverGRPC(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := Open(ctx, Config{Root: root}, newFake(nil))
		if err != nil {
			return nil, nil, err
		}
		socket := filepath.Join(root, "x.sock")
		serving, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- s.Serve(serving, socket) }()
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		if err != nil {
			stop()
			return nil, nil, errors.Join(err, <-done)
		}
		cleanup := func() error {
			conn.Close()
			stop()
			return errors.Join(<-done, s.Close())
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "xylem"), cleanup, nil
	})
}

// onRemote hides a remote snapshot on which everything is based.
type onRemote struct {
	*Snapshotter
	base string
}

func (r onRemote) onBase(parent string) string {
	if parent == "" {
		return r.base
	}
	return parent
}

func (r onRemote) hide(info snapshots.Info) snapshots.Info {
	if info.Parent == r.base {
		info.Parent = ""
	}
	return info
}

func (r onRemote) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return r.Snapshotter.Prepare(ctx, key, r.onBase(parent), opts...)
}

func (r onRemote) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return r.Snapshotter.View(ctx, key, r.onBase(parent), opts...)
}

func (r onRemote) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := r.Snapshotter.Stat(ctx, key)
	return r.hide(info), err
}

func (r onRemote) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	info, err := r.Snapshotter.Update(ctx, info, fieldpaths...)
	return r.hide(info), err
}

func (r onRemote) Walk(ctx context.Context, do snapshots.WalkFunc, filters ...string) error {
	filters = slices.Clone(filters)
	for i, f := range filters {
		filters[i] = strings.ReplaceAll(f, `parent!=""`, fmt.Sprintf("parent!=%q", r.base))
	}
	return r.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Name == r.base {
			return nil
		}
		return do(ctx, r.hide(info))
	}, filters...)
}
