package executor

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// contract is how an instance's program is told of invocations. Safe for concurrent use.
type contract interface {
	// ready returns once the program can be invoked, or an error.
	ready(ctx context.Context) error
	// invoke brings an invocation to the program and its answer to w. It returns a failure if nothing was written to w.
	invoke(w http.ResponseWriter, r *http.Request, inv invocation) *failure
	// healthy returns an error if the program will answer no more.
	healthy(ctx context.Context) error
	// grace is how long the program has between SIGTERM and SIGKILL; 0: SIGKILL at once.
	grace(configured time.Duration) time.Duration
	// close frees what the contract holds. The program has ended.
	close() error
}

// invocation is what the executor knows of one.
type invocation struct {
	in            *instance
	id            string
	began         time.Time
	deadline      time.Time
	clientContext []byte
	trace         string
	tail          bool
	method        string
	url           *url.URL // of the contract "http"
}

func (inv *invocation) tailText() string {
	return base64.StdEncoding.EncodeToString([]byte(inv.in.output.tail.String()))
}

// writeTail sets the trailer with the log's end if the caller asked for it; the trailer was announced.
func (inv *invocation) writeTail(h http.Header) {
	if inv.tail {
		h.Set(api.HeaderLogTail, inv.tailText())
	}
}

// instance is a running copy of a function. Its goroutine, live, owns what is not guarded by mu.
type instance struct {
	id     string
	fn     api.Function
	ex     *Executor
	began  time.Time
	cgroup cgroup

	contract contract // set before ready is closed
	output   *output  // as well
	task     *task    // as well
	created  bool     // there is a process

	ready   chan struct{} // closed when the start succeeded or failed
	gone    chan struct{} // closed when nothing of the instance is left
	checks  chan struct{} // asks live for a health check
	stopped context.Context
	stop    context.CancelCauseFunc // ends the instance
	ended   context.Context         // ends with the process
	end     context.CancelFunc

	proven atomic.Bool // succeeded was called

	mu       sync.Mutex
	state    api.InstanceState
	failure  *failure // of the start
	inFlight int
	idle     time.Time // since when nobody invokes it
	took     time.Duration
	exit     exit // once ended is
}

func (e *Executor) newInstance(id string, fn api.Function) *instance {
	in := &instance{
		id: id, fn: fn, ex: e, began: time.Now(), cgroup: cgroup("/" + e.cfg.Namespace + "/" + id), state: api.InstanceStarting,
		ready: make(chan struct{}), gone: make(chan struct{}), checks: make(chan struct{}, 1),
	}
	in.stopped, in.stop = context.WithCancelCause(context.Background())
	in.ended, in.end = context.WithCancel(context.Background())
	return in
}

func (in *instance) status() api.Instance {
	in.mu.Lock()
	defer in.mu.Unlock()
	return api.Instance{ID: in.id, Function: in.fn, State: in.state, InFlight: in.inFlight, Started: in.began, Ready: in.took}
}

// acquire takes a slot for an invocation and wakes the instance up if it is paused.
func (in *instance) acquire(id string) *failure {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch in.state {
	case api.InstanceReady, api.InstancePaused:
	case api.InstanceStarting:
		return fail(api.FailureNoInstance, "instance %s is not ready yet", in.id)
	default:
		return fail(api.FailureNoInstance, "instance %s is gone", in.id)
	}
	if in.inFlight >= in.fn.Concurrency {
		return fail(api.FailureBusy, "instance %s has %d invocations, as many as it takes", in.id, in.inFlight)
	}
	if in.state == api.InstancePaused {
		if err := in.task.freeze(in.cgroup, false); err != nil {
			in.stop(fmt.Errorf("it cannot be resumed: %w", err))
			return fail(api.FailureNoInstance, "instance %s cannot be resumed: %w", in.id, err)
		}
		in.state = api.InstanceReady
	}
	in.inFlight++
	if in.inFlight > 1 {
		id = ""
	}
	in.output.begin(id)
	return nil
}

func (in *instance) release() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.inFlight--
	in.idle = time.Now()
}

// pause freezes the instance if nobody has invoked it for a while, and returns when to look again.
func (in *instance) pause(after time.Duration) (time.Duration, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state != api.InstanceReady || in.inFlight > 0 {
		return after, nil
	}
	if left := after - time.Since(in.idle); left > 0 {
		return left, nil
	}
	if err := in.task.freeze(in.cgroup, true); err != nil {
		return after, err
	}
	in.state = api.InstancePaused
	return after, nil
}

// check has the instance's health checked soon.
func (in *instance) check() {
	select {
	case in.checks <- struct{}{}:
	default: // one is due anyway
	}
}

// succeeded notes that the program has answered an invocation well.
func (in *instance) succeeded() {
	if !in.proven.Swap(true) {
		in.ex.crashes.succeeded(in.fn.ID())
	}
}

// kill ends the instance because of what its program did or did not do.
func (in *instance) kill(why string) { in.stop(killed(why)) }

// killed is a reason to end an instance without SIGTERM.
type killed string

func (k killed) Error() string { return string(k) }

const exitNotice = 200 * time.Millisecond

// endsSoon waits a moment for the process to end: its connections break before containerd says so.
func (in *instance) endsSoon(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, exitNotice)
	defer cancel()
	select {
	case <-in.ended.Done():
		return true
	case <-ctx.Done():
		return false
	}
}

// exitFailure says why the process ended.
func (in *instance) exitFailure() *failure {
	in.mu.Lock()
	defer in.mu.Unlock()
	f := fail(api.FailureExited, "%s", in.exit.String(in.fn))
	if in.stopped.Err() != nil {
		f = fail(api.FailureExited, "the instance was ended: %w", context.Cause(in.stopped))
	}
	f.log = in.output.tail.String()
	return f
}

// exit is how an instance's process ended.
type exit struct {
	code        uint32
	outOfMemory bool
	err         error
}

func (x exit) String(fn api.Function) string {
	switch {
	case x.outOfMemory:
		return fmt.Sprintf("the program was killed because it used more than its %d MiB of memory", fn.Memory>>20)
	case x.err != nil:
		return fmt.Sprintf("the program ended: %v", x.err)
	case x.code > 128:
		return fmt.Sprintf("the program was ended by signal %d", x.code-128)
	}
	return fmt.Sprintf("the program ended with exit code %d", x.code)
}
