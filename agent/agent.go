package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/agent/snapshotter"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/erofs"
)

// agent is a running daemon. Its parts are started top down and stopped bottom up.
type agent struct {
	cfg      Config
	metrics  *metrics
	cache    *cache.Cache
	registry *registry.Client
	server   *fuse.Server
	pusher   *pusher
	cluster  *cluster           // nil: no schedulers are configured
	proxy    *proxy             // nil: not served
	executor *executor.Executor // nil: the node runs no functions
	images   *Images
	snaps    *snapshotter.Snapshotter

	key       ed25519.PrivateKey // signs what is converted here
	converter *converter         // nil: nothing is converted here

	ready   atomic.Bool
	bindsMu sync.Mutex
	binds   map[string]digest.Digest // directory -> chain, of mountAt
}

// Run runs the agent until ctx ends, and returns when everything it started has stopped.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.validate(); err != nil {
		return err
	}
	a := &agent{cfg: cfg, metrics: newMetrics(), binds: map[string]digest.Digest{}}
	var stop closers
	defer func() { err = errors.Join(err, stop.close()) }()
	if err := a.start(ctx, &stop); err != nil {
		return err
	}
	return a.serve(ctx)
}

// closers are called in the reverse order of their adding.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c closers) close() (err error) {
	for i := len(c) - 1; i >= 0; i-- {
		err = errors.Join(err, c[i]())
	}
	return err
}

// shutdownTimeout bounds the unmounting at the end.
const shutdownTimeout = 20 * time.Second

func (a *agent) start(ctx context.Context, stop *closers) (err error) {
	if err := a.startStore(stop); err != nil {
		return err
	}
	if err := a.startFUSE(stop); err != nil {
		return err
	}
	if err := a.startImages(ctx, stop); err != nil {
		return err
	}
	if err := a.startProxy(stop); err != nil {
		return err
	}
	a.startConverter(ctx, stop)
	patience := a.cfg.ReadTimeout.Duration
	if a.cfg.Convert == "wait" {
		patience += a.cfg.ConvertWait.Duration
	}
	a.snaps, err = snapshotter.Open(ctx, snapshotter.Config{Root: a.dir("snapshots"), Timeout: patience, Log: a.cfg.Log}, a.images)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	stop.add(a.snaps.Close)
	a.images.holdAll(a.snaps.Chains())
	return nil
}

// startStore takes the root directory and opens what everything else reads from.
func (a *agent) startStore(stop *closers) error {
	for _, dir := range []string{a.cfg.Root, a.cfg.State, a.dir("images")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	lock, err := lockRoot(a.cfg.Root)
	if err != nil {
		return err
	}
	stop.add(lock.Close)
	a.registry, err = newRegistry(a.cfg)
	if err != nil {
		return err
	}
	stop.add(a.registry.Close)
	if a.cache, err = cache.Open(cache.Config{Dir: a.dir("cache"), Budget: int64(a.cfg.CacheBudget), Logger: a.cfg.Log}); err != nil {
		return fmt.Errorf("open block cache: %w", err)
	}
	stop.add(a.cache.Close)
	return nil
}

func (a *agent) startProxy(stop *closers) (err error) {
	if a.cfg.Proxy.Listen == "" {
		return nil
	}
	if a.proxy, err = newProxy(a.cfg, a.cache, a.registry, a.cluster, a.pulled); err != nil {
		return err
	}
	stop.add(a.proxy.close)
	a.metrics.addProxy(a.proxy.handler.Counters())
	return nil
}

func (a *agent) dir(name string) string { return filepath.Join(a.cfg.Root, name) }

// startFUSE mounts the file system of blobs. A mount that a dead agent left has no server any more: it is detached first.
func (a *agent) startFUSE(stop *closers) (err error) {
	dir, err := fuse.MountPath(filepath.Join(a.cfg.State, "blobs"))
	if err != nil {
		return err
	}
	stale, err := fuse.IsMountPoint(dir)
	if err != nil {
		return err
	}
	if stale {
		a.cfg.Log.Warn("an agent died here: its mounts are taken away, containers that it served must be recreated", "dir", dir)
		if err := erofs.Clear(dir, a.cfg.Log); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	a.server, err = fuse.Mount(dir, fuse.Config{ReadTimeout: a.cfg.ReadTimeout.Duration, Log: a.cfg.Log})
	if err != nil {
		return fmt.Errorf("mount FUSE at %s: %w", dir, err)
	}
	a.pusher = newPusher(a.server, a.cfg.Log)
	a.pusher.start()
	stop.add(func() error {
		defer a.pusher.stop() // a push waits for reads of the same bytes, which the server's end answers
		return a.server.Close()
	})
	return nil
}

func (a *agent) startImages(ctx context.Context, stop *closers) error {
	way, err := a.mountWay(ctx)
	if err != nil {
		return err
	}
	if a.key, err = convert.GenerateKey(a.cfg.KeyFile()); err != nil {
		return err
	}
	keys, err := trustedKeys(a.cfg, a.key)
	if err != nil {
		return err
	}
	s := newStacks(a.cfg, a.cache, a.place)
	stop.add(s.close)
	if a.executor, err = a.newExecutor(); err != nil {
		return err
	}
	if a.cluster, err = newCluster(a.cfg, a.cache, s.registry, func(d digest.Digest) bool { return a.images.inUse(d) }, a.executor); err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b := &blobs{cache: a.cache, server: a.server, pusher: a.pusher, source: a.sourceOf(s), open: map[digest.Digest]*blob{}}
	a.images = newImages(a.cfg, b, way)
	a.images.discovery = discovery{dir: a.dir("images"), place: a.place, trusted: keys, log: a.cfg.Log}
	if a.cluster != nil {
		a.images.discovery.through, a.images.removed = a.cluster.through, a.cluster.forget
		stop.add(a.cluster.close)
		a.startMade(stop)
		a.metrics.addPeers(a.cluster.node.Counters())
	}
	a.images.resolve = a.resolve
	a.images.prefetch = &prefetcher{blobs: b, newSweep: s.sweep, ahead: aheadOf(a.cfg), placed: a.placed, workers: 2 * a.cfg.Connections, log: a.cfg.Log, ctx: running}
	stop.add(func() error {
		cancel()
		a.images.prefetch.wait()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		return errors.Join(a.unbindAll(ctx), a.images.close(ctx))
	})
	if err := clearAll(a.images.mountDir, a.cfg.Log); err != nil {
		return err
	}
	return a.images.load()
}

// startMade has block images that the cluster made used here, if it is trusted, and those that were made here kept for others.
func (a *agent) startMade(stop *closers) {
	made := newMade(a.cluster, a.cluster.client, a.metrics)
	made.registry, a.cluster.holdings.uses = a.repository, a.images.usesLayout
	a.cluster.made = made
	if a.cfg.TrustCluster {
		a.images.discovery.made = made
	}
	stop.add(func() error {
		made.close()
		return nil
	})
}

// startConverter has images converted that have no block image: those that are pulled, if the configuration says so, and those of functions.
func (a *agent) startConverter(ctx context.Context, stop *closers) {
	if a.cfg.Convert == "off" && !a.cfg.Functions.Enabled {
		return
	}
	c := &converter{dir: a.dir("converted"), key: a.key, content: a.content, known: a.hasBlockImage, done: a.images.add, found: a.images.forgetMiss,
		again: time.Second, metrics: a.metrics, log: a.cfg.Log, wake: make(chan struct{}, 1), jobs: map[digest.Digest]*job{}, inept: map[digest.Digest]time.Time{}}
	if a.cfg.Convert == "wait" {
		c.wait = a.cfg.ConvertWait.Duration
		a.images.await = c.await
	}
	if a.cfg.ConvertPush {
		c.push = a.pushBlockImage
	}
	if a.cluster != nil {
		if c.wait == 0 {
			c.again = 10 * time.Second // many agents may be asking
		}
		c.cluster = &shared{schedulers: a.cluster.client, address: a.cluster.address, holdings: a.cluster.holdings}
		a.cluster.made.lost = c.remake
	}
	if a.cfg.Convert != "off" {
		a.images.unpacked = c.add
	}
	a.converter = c
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var converting sync.WaitGroup
	converting.Go(func() { c.run(running) })
	stop.add(func() error {
		cancel()
		converting.Wait()
		return nil
	})
}

// placed returns a channel that is closed when the agent has its place in the image's tree; nil if the image travels in none.
func (a *agent) placed(im *image) <-chan struct{} {
	if a.cluster == nil || im.origin.Layout != "" {
		return nil
	}
	return a.cluster.placed(im.artifact.Digest)
}

// sourceOf returns where the blocks of an image come from: through the image's tree, or from its place alone.
func (a *agent) sourceOf(s *stacks) func(*image) (blockfmt.Source, error) {
	return func(im *image) (blockfmt.Source, error) {
		alone, err := s.source(im.origin)
		if err != nil || a.cluster == nil || im.origin.Layout != "" {
			return alone, err
		}
		return a.cluster.source(im, alone)
	}
}

// mountWay returns the configured way to mount, or the first that works here.
func (a *agent) mountWay(ctx context.Context) (erofs.Way, error) {
	if a.cfg.MountWay != "auto" {
		return erofs.ParseWay(a.cfg.MountWay)
	}
	found := erofs.Detect(ctx, a.cfg.Root, a.cfg.Log)
	if found.Way == 0 {
		return 0, fmt.Errorf("images cannot be mounted here, `xylem doctor` says what to change: %s", strings.ReplaceAll(found.String(), "\n", "; "))
	}
	a.cfg.Log.Info("way to mount images", "way", found.Way.String())
	return found.Way, nil
}

// services are what serves the open sockets of an agent.
type services struct {
	stop *closers
	run  []func(context.Context) error
}

// add takes over a listener, or says why there is none.
func (s *services) add(l net.Listener, err error, do func(context.Context, net.Listener) error) error {
	if err != nil {
		return err
	}
	s.stop.add(func() error { l.Close(); return nil }) // served or not
	s.run = append(s.run, func(ctx context.Context) error { return do(ctx, l) })
	return nil
}

// listenPublic opens the TCP sockets.
func (a *agent) listenPublic(s *services) (err error) {
	if a.cfg.Admin != "" {
		l, err := net.Listen("tcp", a.cfg.Admin)
		err = s.add(l, err, func(ctx context.Context, l net.Listener) error { return serve(ctx, l, a.observability()) })
		if err != nil {
			return err
		}
	}
	if a.proxy != nil {
		l, err := net.Listen("tcp", a.cfg.Proxy.Listen)
		return s.add(l, err, func(ctx context.Context, l net.Listener) error { return a.proxy.serve(ctx, l) })
	}
	return nil
}

// listen opens all sockets of the agent's own services.
func (a *agent) listen(s *services) error {
	admin, err := listenUnix(a.cfg.AdminSocket())
	err = s.add(admin, err, func(ctx context.Context, l net.Listener) error { return serve(ctx, l, a.control(a.observability())) })
	if err == nil {
		err = a.listenPublic(s)
	}
	if err == nil && a.cfg.CRI != "" {
		var cri net.Listener
		cri, err = listenUnix(a.cfg.CRISocket())
		err = s.add(cri, err, func(ctx context.Context, l net.Listener) error {
			return serveCRI(ctx, l, a.cfg.CRI, a.registry.SetCredentials)
		})
	}
	return err
}

func (a *agent) serve(ctx context.Context) error {
	snapshots := func(ctx context.Context) error { return a.snaps.Serve(ctx, a.cfg.Socket()) }
	also := []func(context.Context) error{
		func(ctx context.Context) error { a.images.endStartups(ctx); return nil },
	}
	if a.executor != nil { // whose containers need their snapshots to the end
		lasting, over := context.WithCancel(context.WithoutCancel(ctx))
		snapshots = func(context.Context) error { return a.snaps.Serve(lasting, a.cfg.Socket()) }
		also = append(also, func(ctx context.Context) error { return a.runFunctions(ctx, over) })
	}
	also = append(also, snapshots)
	if a.cluster != nil {
		also = append(also, a.cluster.run)
	}
	if a.proxy != nil {
		also = append(also, a.proxy.run)
	}
	return a.serveAll(ctx, a.listen, also...)
}

// serveAll serves what listen opens, and runs the others, until ctx ends or one of them fails.
func (a *agent) serveAll(ctx context.Context, listen func(*services) error, others ...func(context.Context) error) (err error) {
	var stop closers
	defer func() { err = errors.Join(err, stop.close()) }()
	s := &services{stop: &stop}
	if err := listen(s); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range append(s.run, others...) {
		g.Go(func() error { return run(ctx) })
	}
	a.ready.Store(true)
	if a.snaps == nil {
		a.cfg.Log.Info("proxy is ready", "proxy", a.cfg.Proxy.Listen, "admin", a.cfg.Admin)
	} else {
		a.cfg.Log.Info("agent is ready", "snapshotter", a.cfg.Socket(), "admin", a.cfg.Admin, "proxy", a.cfg.Proxy.Listen)
	}
	return g.Wait()
}

// clearAll takes away what a dead agent left mounted below dir.
func clearAll(dir string, log *slog.Logger) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := erofs.Clear(path, log); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// lockRoot makes this process the only agent on the root directory until the file is closed.
func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another agent is running on this root directory", root), f.Close())
	}
	return f, nil
}
