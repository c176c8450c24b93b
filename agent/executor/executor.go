package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Executor runs instances. Its methods are safe for concurrent use.
type Executor struct {
	cfg     Config
	logs    *logs
	crashes *crashes

	// Set by Run before running is closed.
	running chan struct{}
	life    context.Context // ends when the executor stops; carries containerd's namespace
	client  *containerd.Client
	images  *images
	spares  *spares

	lives sync.WaitGroup // goroutines of instances

	mu        sync.Mutex
	instances map[string]*instance
	memory    int64                // of all instances, bytes
	cpu       int                  // of all instances, thousandths of a core
	asked     map[string]time.Time // when schedulers asked last how the node is, by name
	stopping  bool
}

// New returns an Executor that does nothing before Run.
func New(cfg Config) (*Executor, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Executor{
		cfg: cfg, logs: newLogs(cfg.LogBytes, cfg.LogRate), crashes: newCrashes(cfg), running: make(chan struct{}),
		instances: map[string]*instance{}, asked: map[string]time.Time{}, spares: newSpares(filepath.Join(cfg.State, "netns"), cfg.Spares),
	}, nil
}

// Run removes what a former executor left, serves starts until ctx ends, and then ends all instances. It may be called once.
func (e *Executor) Run(ctx context.Context) (err error) {
	ctx = log.WithLogger(namespaces.WithNamespace(ctx, e.cfg.Namespace), quiet())
	if err := e.makeDirs(); err != nil {
		return fmt.Errorf("executor: %w", err)
	}
	if e.client, err = containerd.New(e.cfg.Containerd); err != nil {
		return fmt.Errorf("executor: containerd at %s: %w", e.cfg.Containerd, err)
	}
	defer func() { err = errors.Join(err, e.client.Close()) }()
	if err := e.clean(ctx); err != nil {
		return fmt.Errorf("executor: remove instances of a former run: %w", err)
	}
	e.images = &images{client: e.client, cfg: e.cfg, known: map[digest.Digest]*pull{}, used: map[string]time.Time{}}
	e.life = ctx
	var background sync.WaitGroup
	background.Go(func() { e.spares.fill(ctx, e.cfg.Log) })
	background.Go(func() { e.images.sweep(ctx) })
	close(e.running)
	<-ctx.Done()
	e.mu.Lock()
	e.stopping = true
	e.mu.Unlock()
	e.lives.Wait()
	e.images.pulls.Wait()
	background.Wait()
	return e.spares.empty()
}

func (e *Executor) outputDir() string { return filepath.Join(e.cfg.State, "output") }

// makeDirs makes the directories, empty.
func (e *Executor) makeDirs() error {
	if err := clearMounts(e.cfg.State); err != nil {
		return err
	}
	for _, dir := range []string{e.spares.dir, e.outputDir()} {
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o711)); err != nil {
			return err
		}
	}
	return e.writeHosts()
}

// quiet keeps containerd's client library from logging: what matters of it comes as errors.
func quiet() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// errNotRunning says that there can be no instances (yet, or any more).
func errNotRunning() *failure { return fail(api.FailureNoRoom, "the executor is not running") }

func (e *Executor) isRunning() bool {
	select {
	case <-e.running:
		return true
	default:
		return false
	}
}

// start returns the instance with that ID, begun now unless it exists.
func (e *Executor) start(id string, fn api.Function) (*instance, *failure) {
	if !e.isRunning() {
		return nil, errNotRunning()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if in := e.instances[id]; in != nil {
		return in, nil
	}
	if f := e.admit(fn); f != nil {
		return nil, f
	}
	in := e.newInstance(id, fn)
	e.instances[id] = in
	e.memory += fn.Memory
	e.cpu += fn.CPU
	e.lives.Go(func() { in.live(e.life) })
	return in, nil
}

// admit says whether there is room for an instance. The caller holds mu.
func (e *Executor) admit(fn api.Function) *failure {
	switch {
	case e.stopping:
		return errNotRunning()
	case e.memory+fn.Memory > e.cfg.Memory:
		return fail(api.FailureNoRoom, "an instance of %s needs %d MiB of memory, of %d MiB %d are in use", fn.ID(), fn.Memory>>20, e.cfg.Memory>>20, e.memory>>20)
	case e.cpu+fn.CPU > e.cfg.CPU:
		return fail(api.FailureNoRoom, "an instance of %s needs %d thousandths of a core, of %d %d are in use", fn.ID(), fn.CPU, e.cfg.CPU, e.cpu)
	}
	return e.crashes.check(fn.ID(), time.Now())
}

// forget gives an instance's room to others. Nothing of it is left.
func (e *Executor) forget(in *instance) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.instances, in.id)
	e.memory -= in.fn.Memory
	e.cpu -= in.fn.CPU
}

func (e *Executor) find(id string) *instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.instances[id]
}

// Status says what the node can run and runs.
func (e *Executor) Status() api.NodeStatus {
	e.mu.Lock()
	all := make([]*instance, 0, len(e.instances))
	for _, in := range e.instances {
		all = append(all, in)
	}
	e.mu.Unlock()
	s := api.NodeStatus{Peer: e.cfg.Peer, Zone: e.cfg.Zone, Memory: e.cfg.Memory, CPU: e.cfg.CPU, Images: e.cfg.Images.Held()}
	for _, in := range all {
		s.Instances = append(s.Instances, in.status())
	}
	slices.SortFunc(s.Instances, func(a, b api.Instance) int { return strings.Compare(a.ID, b.ID) })
	return s
}

// heard notes that a scheduler asks how the node is.
func (e *Executor) heard(scheduler string) {
	if scheduler == "" || len(scheduler) > maxName {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.asked) >= maxSchedulers {
		clear(e.asked)
	}
	e.asked[scheduler] = time.Now()
}

const (
	// maxSchedulers is how many schedulers' questions are remembered, maxName how long their names are.
	maxSchedulers, maxName = 100, 64
	// orphanAfter is how long an instance is kept of which no scheduler has asked.
	orphanAfter = 15 * time.Minute
)

// isOrphan says whether the scheduler of an instance is gone: it has not asked for long, so nobody knows of the instance.
func (e *Executor) isOrphan(in *instance, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := in.began
	for name, at := range e.asked {
		if strings.HasPrefix(in.id, name) && at.After(last) {
			last = at
		}
	}
	return now.Sub(last) > orphanAfter
}
