package executor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	// killWait is how long a process may take to end after SIGKILL, removeTimeout how long its removal may take.
	killWait      = 10 * time.Second
	removeTimeout = 30 * time.Second
	// drainTime bounds the wait for output after the process has ended.
	drainTime = time.Second
)

var (
	errDeleted  = errors.New("it was deleted")
	errOrphan   = errors.New("its scheduler is gone")
	errShutdown = errors.New("the agent stops")
)

// undo is how to take back what a start has done, in the order in which it was done.
type undo []func(context.Context) error

func (u *undo) add(f func(context.Context) error) { *u = append(*u, f) }

func (u undo) run(ctx context.Context) error {
	var errs []error
	for i := len(u) - 1; i >= 0; i-- {
		errs = append(errs, u[i](ctx))
	}
	return errors.Join(errs...)
}

// live is an instance's goroutine: it starts the instance, watches it, and removes everything of it in the end. ctx is the
// executor's: it carries containerd's namespace.
func (in *instance) live(ctx context.Context) {
	defer close(in.gone)
	defer context.AfterFunc(ctx, func() { in.stop(errShutdown) })()
	lasting := context.WithoutCancel(ctx)
	var back undo
	err := in.start(lasting, &back)
	in.started(err)
	if err == nil {
		in.watch()
	}
	in.terminate(lasting)
	ctx, cancel := context.WithTimeout(lasting, removeTimeout)
	defer cancel()
	if err := back.run(ctx); err != nil {
		in.ex.cfg.Log.Error("instance not removed completely, the next start of the agent tries again", "instance", in.id, "err", err)
	}
	in.ex.forget(in)
}

// started notes how the start went.
func (in *instance) started(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	defer close(in.ready)
	log := in.ex.cfg.Log.With("instance", in.id, "function", in.fn.ID())
	in.took = time.Since(in.began)
	if err == nil {
		in.state, in.idle = api.InstanceReady, time.Now()
		log.Info("instance ready", "took", in.took)
		return
	}
	in.state, in.failure = api.InstanceGone, asFailure(err, api.FailureInit)
	log.Warn("instance did not start", "kind", in.failure.kind, "err", err)
	if in.failure.kind == api.FailureInit {
		in.ex.crashes.failed(in.fn.ID(), in.failure, time.Now())
	}
}

// start builds the instance and waits until its program is ready.
func (in *instance) start(lasting context.Context, back *undo) error {
	ctx, cancel := context.WithTimeout(lasting, in.fn.StartTimeout.Duration)
	defer cancel()
	defer context.AfterFunc(in.stopped, cancel)()
	im, err := in.ex.images.get(ctx, in.ex.life, in.fn)
	if err != nil {
		return in.startFailure(err, api.FailureImage)
	}
	err = in.build(ctx, lasting, im, back)
	if errdefs.IsNotFound(err) { // somebody has removed the image since
		in.ex.images.forget(in.fn.Digest)
	}
	if err != nil {
		return in.startFailure(err, api.FailureImage)
	}
	defer context.AfterFunc(in.ended, cancel)()
	if err := in.contract.ready(ctx); err != nil {
		in.output.settle(lasting)
		if f := (*failure)(nil); !errors.As(err, &f) && in.ended.Err() != nil { // what the program said itself says more
			err = fmt.Errorf("before it was ready, %w", in.exitFailure().err)
		}
		return in.startFailure(err, api.FailureInit)
	}
	return nil
}

// startFailure is why an instance did not start.
func (in *instance) startFailure(err error, kind string) *failure {
	f := asFailure(err, kind)
	if in.stopped.Err() != nil {
		f = fail(api.FailureNoInstance, "instance %s ended while it started: %w", in.id, context.Cause(in.stopped))
	}
	if in.output != nil {
		f.log = in.output.tail.String()
	}
	return f
}

// build makes everything that the program needs, and runs it.
func (in *instance) build(ctx, lasting context.Context, im *image, back *undo) error {
	ns, err := in.ex.spares.take()
	if err != nil {
		return err
	}
	back.add(func(context.Context) error { return ns.remove() })
	in.output, err = openOutput(filepath.Join(in.ex.outputDir(), in.id), in.id, in.fn.Version, in.ex.logs.of(in.fn.Key()))
	if err != nil {
		return err
	}
	back.add(func(context.Context) error { return in.output.close() })
	if err := in.makeContract(ns, back); err != nil {
		return err
	}
	spec, err := in.ex.spec(ctx, in, im, ns)
	if err != nil {
		return err
	}
	in.task = &task{client: in.ex.client, cfg: in.ex.cfg, id: in.id}
	back.add(in.task.remove)
	mounts, err := in.task.prepare(ctx, im, spec)
	if err != nil {
		return err
	}
	if err := in.task.create(ctx, mounts, in.output); err != nil {
		return err
	}
	in.created = true
	in.follow(lasting, back)
	if err := in.output.connected(); err != nil {
		return err
	}
	return in.task.start(ctx)
}

func (in *instance) makeContract(ns *netns, back *undo) error {
	if in.fn.Contract == api.ContractLambda {
		l := newLambda(in.ended, in.fn)
		served := make(chan struct{})
		go func() {
			defer close(served)
			l.server.serve(ns.api)
		}()
		in.contract = l
		back.add(func(context.Context) error {
			err := ns.api.Close()
			<-served
			return errors.Join(err, l.close())
		})
		return nil
	}
	if err := ns.api.Close(); err != nil { // the port is the program's
		return err
	}
	in.contract = newHTTPContract(ns, in.fn.Concurrency)
	back.add(func(context.Context) error { return in.contract.close() })
	return nil
}

// follow has a goroutine note the end of the process.
func (in *instance) follow(lasting context.Context, back *undo) {
	ctx, cancel := context.WithCancel(lasting)
	done := make(chan struct{})
	go func() {
		defer close(done)
		x := in.task.wait(ctx)
		in.output.drained(drainTime)
		x.outOfMemory = x.code != 0 && in.ex.cfg.direct() && in.cgroup.outOfMemory()
		in.mu.Lock()
		in.exit = x
		in.mu.Unlock()
		in.end()
	}()
	back.add(func(context.Context) error {
		cancel()
		<-done
		return nil
	})
}

// watch returns when the instance is to end: its process has ended, somebody wants it, or it does not answer.
func (in *instance) watch() {
	pause := time.NewTimer(max(in.ex.cfg.PauseAfter, 0))
	defer pause.Stop()
	if in.ex.cfg.PauseAfter < 0 {
		pause.Stop()
	}
	health := time.NewTicker(in.ex.cfg.HealthEvery)
	defer health.Stop()
	failures := 0
	for {
		select {
		case <-in.ended.Done():
			in.crashed()
			return
		case <-in.stopped.Done():
			return
		case <-pause.C:
			again, err := in.pause(in.ex.cfg.PauseAfter)
			if err != nil {
				in.ex.cfg.Log.Warn("instance cannot be paused", "instance", in.id, "err", err)
			}
			pause.Reset(again)
		case now := <-health.C:
			if in.ex.isOrphan(in, now) && in.status().InFlight == 0 {
				in.stop(errOrphan)
				continue
			}
			failures = in.examine(failures)
		case <-in.checks:
			failures = in.examine(failures)
		}
	}
}

// examine checks the health of an instance that runs, and ends it when the check failed twice in a row.
func (in *instance) examine(failures int) int {
	if in.status().State != api.InstanceReady {
		return failures
	}
	err := in.contract.healthy(in.stopped)
	if err == nil {
		return 0
	}
	if failures++; failures < 2 {
		in.check()
		return failures
	}
	in.kill(fmt.Sprintf("it does not answer: %v", err))
	return failures
}

// crashed notes that the process ended although nobody wanted it to.
func (in *instance) crashed() {
	if in.stopped.Err() != nil {
		return
	}
	f := in.exitFailure()
	in.ex.cfg.Log.Warn("instance ended by itself", "instance", in.id, "function", in.fn.ID(), "err", f)
	in.ex.crashes.failed(in.fn.ID(), f, time.Now())
}

// terminate ends the process, if there is one.
func (in *instance) terminate(ctx context.Context) {
	in.mu.Lock()
	paused := in.state == api.InstancePaused
	in.state = api.InstanceGone
	in.mu.Unlock()
	if !in.created {
		return
	}
	log := in.ex.cfg.Log.With("instance", in.id)
	if paused {
		if err := in.task.freeze(in.cgroup, false); err != nil {
			log.Warn("instance cannot be resumed for its end", "err", err)
		}
	}
	if grace := in.grace(); grace > 0 && !in.signal(ctx, syscall.SIGTERM, grace) {
		log.Info("instance did not end after SIGTERM", "grace", grace)
	}
	if !in.signal(ctx, syscall.SIGKILL, killWait) {
		log.Error("instance did not end after SIGKILL")
	}
}

// grace is how long the process has after SIGTERM. One that failed has none.
func (in *instance) grace() time.Duration {
	var k killed
	if in.contract == nil || errors.As(context.Cause(in.stopped), &k) {
		return 0
	}
	return in.contract.grace(in.ex.cfg.StopGrace)
}

// signal sends a signal to a process that has not ended and waits for its end. It reports whether it has ended.
func (in *instance) signal(ctx context.Context, sig syscall.Signal, limit time.Duration) bool {
	if in.ended.Err() != nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := in.task.kill(ctx, sig); err != nil {
		in.ex.cfg.Log.Warn("instance cannot be signalled", "instance", in.id, "signal", sig, "err", err)
	}
	select {
	case <-in.ended.Done():
		return true
	case <-ctx.Done():
		return false
	}
}
