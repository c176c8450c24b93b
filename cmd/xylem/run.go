package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

const (
	// killGrace is how long a container's process has to end after SIGTERM.
	killGrace = 10 * time.Second
	// drainGrace bounds the wait for output after the process has ended.
	drainGrace = 5 * time.Second
	// cleanupTimeout bounds the removal of a container, also after an interrupt.
	cleanupTimeout = 30 * time.Second
)

// runFlags are the flags of `xylem run`.
type runFlags struct {
	containerdFlags
	name, pull string
	entrypoint string
	env        []string
	hostNet    bool
	rm         bool
	tty        bool
}

func newRun(a *app) *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use: "run REF [CMD...]", Short: "Run a container of an image, without waiting for its download",
		Long: "Run pulls the image if it is not here, starts a container with the image's configuration through containerd, attaches its\n" +
			"stdin, stdout and stderr, passes on its exit code and removes it. CMD replaces the image's command and follows its\n" +
			"entrypoint, if it has one. Flags come before REF.",
		Args: usage(cobra.MinimumNArgs(1)),
	}
	cmd.Flags().SetInterspersed(false)
	flags.add(cmd)
	cmd.Flags().StringVar(&flags.name, "name", "", "`id` of the container (default a random one)")
	cmd.Flags().StringVar(&flags.pull, "pull", "missing", "when to pull: always, missing or never")
	cmd.Flags().StringVar(&flags.entrypoint, "entrypoint", "", "`program` to run instead of the image's entrypoint")
	cmd.Flags().StringArrayVarP(&flags.env, "env", "e", nil, "additional environment, `KEY=VALUE`; repeatable")
	cmd.Flags().BoolVar(&flags.hostNet, "net-host", false, "share the machine's network instead of having none")
	cmd.Flags().BoolVar(&flags.rm, "rm", true, "remove the container when its process has ended")
	cmd.Flags().BoolVarP(&flags.tty, "tty", "t", false, "give the process a terminal; stdin must be one")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.runContainer(cmd.Context(), &flags, args[0], args[1:])
	}
	return cmd
}

func (f *runFlags) validate(in io.Reader) error {
	switch f.pull {
	case "always", "missing", "never":
	default:
		return usageError{fmt.Errorf("--pull %q, want always, missing or never", f.pull)}
	}
	for _, e := range f.env {
		if !strings.Contains(e, "=") {
			return usageError{fmt.Errorf("--env %q, want KEY=VALUE", e)}
		}
	}
	if f.tty && !isTerminal(in) {
		return usageError{errors.New("--tty needs a terminal at stdin")}
	}
	if f.name == "" {
		f.name = "xylem-" + strings.ToLower(rand.Text()[:10])
	}
	return nil
}

func (a *app) runContainer(ctx context.Context, flags *runFlags, ref string, args []string) (err error) {
	if err := flags.validate(a.in); err != nil {
		return err
	}
	client, ctx, err := flags.connect(ctx, a.log)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := flags.checkSnapshotter(ctx, client); err != nil {
		return err
	}
	image, err := a.imageFor(ctx, client, ref, flags)
	if err != nil {
		return err
	}
	container, err := client.NewContainer(ctx, flags.name, flags.container(image, args)...)
	if err != nil {
		return containerdError(fmt.Errorf("create container %s of %s: %w", flags.name, ref, err), &flags.containerdFlags)
	}
	if flags.rm {
		defer func() { err = errors.Join(err, remove(ctx, container)) }()
	}
	code, err := a.runTask(ctx, container, flags.tty)
	switch {
	case err != nil:
		return containerdError(fmt.Errorf("run %s of %s: %w", flags.name, ref, err), &flags.containerdFlags)
	case code != 0:
		return processExit(code)
	}
	return nil
}

// imageFor returns the image, pulled if it is not here or not prepared for the snapshotter.
func (a *app) imageFor(ctx context.Context, client *containerd.Client, ref string, flags *runFlags) (containerd.Image, error) {
	name, err := canonical(ref)
	if err != nil {
		return nil, err
	}
	if flags.pull == "always" {
		return a.pull(ctx, client, ref, &flags.containerdFlags)
	}
	image, err := client.GetImage(ctx, name)
	if err == nil {
		var unpacked bool
		if unpacked, err = image.IsUnpacked(ctx, flags.snapshotter); err == nil && unpacked {
			return image, nil
		}
	}
	if flags.pull == "missing" && (err == nil || errdefs.IsNotFound(err)) {
		return a.pull(ctx, client, ref, &flags.containerdFlags)
	}
	if err == nil {
		err = fmt.Errorf("image %s is not prepared for snapshotter %s: %w", name, flags.snapshotter, errdefs.ErrNotFound)
	}
	return nil, advise(err, "pull it first, or do not say --pull never")
}

func (f *runFlags) container(image containerd.Image, args []string) []containerd.NewContainerOpts {
	spec := []oci.SpecOpts{oci.WithDefaultSpec(), oci.WithDefaultUnixDevices, oci.WithImageConfigArgs(image, args)}
	if f.entrypoint != "" {
		spec = append(spec, oci.WithProcessArgs(append([]string{f.entrypoint}, args...)...))
	}
	if len(f.env) > 0 {
		spec = append(spec, oci.WithEnv(f.env))
	}
	if f.tty {
		spec = append(spec, oci.WithTTY)
	}
	if f.hostNet {
		spec = append(spec, oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostHostsFile, oci.WithHostResolvconf)
	}
	return []containerd.NewContainerOpts{
		containerd.WithImage(image),
		containerd.WithSnapshotter(f.snapshotter),
		containerd.WithNewSnapshot(f.name, image),
		containerd.WithNewSpec(spec...),
	}
}

// remove deletes the container and its snapshot, also when ctx has ended.
func remove(ctx context.Context, container containerd.Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		return fmt.Errorf("remove container %s: %w", container.ID(), err)
	}
	return nil
}

// runTask runs the container's process to its end and returns its exit code. When ctx ends, the process gets SIGTERM and,
// if it goes on, SIGKILL.
func (a *app) runTask(ctx context.Context, container containerd.Container, tty bool) (code uint32, err error) {
	lasting := context.WithoutCancel(ctx)
	stdin := &closingReader{Reader: a.in}
	streams := []cio.Opt{cio.WithStreams(stdin, a.out, a.err)}
	if tty {
		streams = []cio.Opt{cio.WithStreams(stdin, a.out, nil), cio.WithTerminal}
	}
	task, err := container.NewTask(ctx, cio.NewCreator(streams...))
	if err != nil {
		return 0, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(lasting, cleanupTimeout)
		defer cancel()
		if _, e := task.Delete(ctx, containerd.WithProcessKill); e != nil && !errdefs.IsNotFound(e) {
			err = errors.Join(err, fmt.Errorf("remove its process: %w", e))
		}
	}()
	exit, err := task.Wait(lasting)
	if err != nil {
		return 0, err
	}
	if tty {
		restore, err := a.attachTerminal(lasting, task)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	if err := task.Start(lasting); err != nil { // an interrupt must not hide whether it has started
		return 0, err
	}
	stdin.onEOF(func() { _ = task.CloseIO(lasting, containerd.WithStdinCloser) }) // fails when the process has ended: fine
	select {
	case status := <-exit:
		code, err = status.ExitCode(), status.Error()
	case <-ctx.Done():
		code, err = terminate(lasting, task, exit)
	}
	drain(task.IO())
	return code, err
}

// drain waits until what the process has printed is copied: removing the task closes its pipes, whatever is still in them.
// Somebody who has inherited a pipe can keep it open, so the wait is bounded; its goroutine ends with the task's removal.
func drain(output cio.IO) {
	copied := make(chan struct{})
	go func() {
		output.Wait()
		close(copied)
	}()
	grace := time.NewTimer(drainGrace)
	defer grace.Stop()
	select {
	case <-copied:
	case <-grace.C:
	}
}

// terminate ends a process: SIGTERM, then SIGKILL.
func terminate(ctx context.Context, task containerd.Task, exit <-chan containerd.ExitStatus) (uint32, error) {
	grace := time.NewTimer(killGrace)
	defer grace.Stop()
	if err := task.Kill(ctx, syscall.SIGTERM); err != nil && !errdefs.IsNotFound(err) {
		return 0, err
	}
	select {
	case status := <-exit:
		return status.ExitCode(), status.Error()
	case <-grace.C:
	}
	if err := task.Kill(ctx, syscall.SIGKILL, containerd.WithKillAll); err != nil && !errdefs.IsNotFound(err) {
		return 0, err
	}
	status := <-exit
	return status.ExitCode(), status.Error()
}

// closingReader is stdin that says when it has ended: containerd keeps a container's stdin open until it is told.
type closingReader struct {
	io.Reader
	mu    sync.Mutex
	ended bool
	tell  func()
}

func (r *closingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = true
		if r.tell != nil {
			r.tell()
		}
	}
	return n, err
}

// onEOF has f called once the reader has ended, which may be now.
func (r *closingReader) onEOF(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell = f
	if r.ended {
		f()
	}
}
