package executor

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
)

// task is an instance's container in containerd with its process. It talks to containerd's services itself, because the client
// library reads everything back that it has just written: five more round trips for each start.
type task struct {
	client *containerd.Client
	cfg    Config
	id     string
}

// prepare makes the container and its snapshot, at the same time, and returns the mounts of its root.
func (t *task) prepare(ctx context.Context, im *image, spec *oci.Spec) (mounts []mount.Mount, err error) {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		mounts, err = t.client.SnapshotService(t.cfg.Snapshotter).Prepare(ctx, t.id, im.chain, rooted())
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		_, err := t.client.ContainerService().Create(ctx, containers.Container{
			ID: t.id, Image: im.name, Runtime: containers.RuntimeInfo{Name: t.cfg.Runtime}, Spec: encoded, SnapshotKey: t.id, Snapshotter: t.cfg.Snapshotter,
		})
		if err != nil {
			return fmt.Errorf("container: %w", err)
		}
		return nil
	})
	return mounts, g.Wait()
}

// create makes the process, which does not run yet.
func (t *task) create(ctx context.Context, mounts []mount.Mount, out *output) error {
	req := &tasks.CreateTaskRequest{ContainerID: t.id, Stdout: out.stdout, Stderr: out.stderr}
	for _, m := range mounts {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	_, err := t.client.TaskService().Create(ctx, req)
	return errgrpc.ToNative(err)
}

func (t *task) start(ctx context.Context) error {
	_, err := t.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: t.id})
	return errgrpc.ToNative(err)
}

// waitRetry is the time between tries to ask a containerd that does not answer.
const waitRetry = 200 * time.Millisecond

// wait returns when the process has ended, also if containerd is started anew meanwhile, or with ctx.
func (t *task) wait(ctx context.Context) exit {
	for {
		r, err := t.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: t.id})
		if err == nil {
			return exit{code: r.ExitStatus}
		}
		if err := errgrpc.ToNative(err); errdefs.IsNotFound(err) || ctx.Err() != nil {
			return exit{err: err}
		}
		wait(ctx, waitRetry)
	}
}

func (t *task) kill(ctx context.Context, sig syscall.Signal) error {
	_, err := t.client.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: t.id, Signal: uint32(sig), All: sig == syscall.SIGKILL})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// freeze stops or continues the processes.
func (t *task) freeze(c cgroup, frozen bool) error {
	if t.cfg.direct() {
		if err := c.freeze(frozen); !errors.Is(err, errNoCgroup) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), t.cfg.Namespace), freezeTimeout)
	defer cancel()
	var err error
	if frozen {
		_, err = t.client.TaskService().Pause(ctx, &tasks.PauseTaskRequest{ContainerID: t.id})
	} else {
		_, err = t.client.TaskService().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: t.id})
	}
	return errgrpc.ToNative(err)
}

// freezeTimeout bounds a call to a runtime whose cgroups cannot be written directly.
const freezeTimeout = 5 * time.Second

// remove removes the process, which has ended or never ran, the container and its snapshot, as far as they exist.
func (t *task) remove(ctx context.Context) error {
	var errs []error
	note := func(what string, err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove %s of %s: %w", what, t.id, err))
		}
	}
	_, err := t.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: t.id})
	note("process", errgrpc.ToNative(err))
	note("container", t.client.ContainerService().Delete(ctx, t.id))
	note("snapshot", t.client.SnapshotService(t.cfg.Snapshotter).Remove(ctx, t.id))
	return errors.Join(errs...)
}
