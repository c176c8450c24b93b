package executor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// cleanTimeout bounds the wait for containerd and for the snapshotter, which may start at the same time.
const cleanTimeout = 30 * time.Second

// clean calls removeStale until containerd and the snapshotter answer.
func (e *Executor) clean(ctx context.Context) error {
	late := time.After(cleanTimeout)
	for pause := time.NewTicker(200 * time.Millisecond); ; {
		err := e.removeStale(ctx)
		if err == nil || !isUnavailable(err) {
			pause.Stop()
			return err
		}
		select {
		case <-pause.C:
			continue
		case <-late:
		case <-ctx.Done():
			err = nil
		}
		pause.Stop()
		return err
	}
}

// isUnavailable says whether somebody could not be reached. containerd passes on what it says of its snapshotter as text.
func isUnavailable(err error) bool {
	return errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "error while dialing") || strings.Contains(err.Error(), "Error while dialing")
}

// removeStale removes everything in the executor's namespace of containerd that is no image.
func (e *Executor) removeStale(ctx context.Context) error {
	containers, err := e.client.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range containers {
		errs = append(errs, e.removeContainer(ctx, c.ID))
	}
	return errors.Join(append(errs, e.removeSnapshots(ctx))...)
}

func (e *Executor) removeContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	t := &task{client: e.client, cfg: e.cfg, id: id}
	// Only a process that was paused needs this, and only one that lives the next; the removal fails if it still does.
	_ = t.freeze(cgroup("/"+e.cfg.Namespace+"/"+id), false)
	if err := t.kill(ctx, syscall.SIGKILL); err == nil {
		t.wait(ctx)
	}
	return t.remove(ctx)
}

// removeSnapshots removes those that a container or a look at an image left.
func (e *Executor) removeSnapshots(ctx context.Context) error {
	snapshotter := e.client.SnapshotService(e.cfg.Snapshotter)
	var keys []string
	err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			keys = append(keys, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("snapshotter %q of containerd at %s: %w", e.cfg.Snapshotter, e.cfg.Containerd, err)
	}
	var errs []error
	for _, key := range keys {
		if err := snapshotter.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("snapshot %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

// clearMounts removes network namespaces and looks at images that a former executor left mounted in its state directory.
func clearMounts(state string) error {
	namespaces, err := filepath.Glob(filepath.Join(state, "netns", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range namespaces {
		errs = append(errs, unmountNetns(path))
	}
	looks, err := filepath.Glob(filepath.Join(state, accountsPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range looks {
		errs = append(errs, mount.UnmountAll(dir, unix.MNT_DETACH), unix.Rmdir(dir))
	}
	return errors.Join(errs...)
}
