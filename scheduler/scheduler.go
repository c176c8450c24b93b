package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/scheduler/store/etcd"
)

// startTimeout bounds the wait for the store when the scheduler starts.
const startTimeout = 30 * time.Second

// Run runs a scheduler until ctx ends, then gives its trees up so that others take them over at once, and returns nil.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("scheduler: %w", err)
		}
	}
	unlock, err := lock(filepath.Join(cfg.Root, "scheduler.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	kept, err := openStore(ctx, cfg)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	err = runOn(ctx, cfg, kept, kept.failed)
	return errors.Join(err, kept.close())
}

// lock makes sure that a directory has one scheduler: two would corrupt each other's etcd, or wait for ever.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("scheduler: another one runs with root %s: %w", filepath.Dir(path), err)
	}
	return func() { f.Close() }, nil
}

// keptStore is the store with what ends it.
type keptStore struct {
	store.Store
	failed <-chan struct{} // closed if it cannot go on
	close  func() error
}

func openStore(ctx context.Context, cfg Config) (keptStore, error) {
	if len(cfg.Etcd) > 0 {
		c, err := etcd.Dial(etcd.Config{
			Endpoints: cfg.Etcd, Prefix: cfg.EtcdPrefix, CA: cfg.EtcdCA, Cert: cfg.EtcdCert, Key: cfg.EtcdKey, Log: cfg.Log,
		})
		if err != nil {
			return keptStore{}, err
		}
		return keptStore{c, nil, c.Close}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, err := etcd.Embed(ctx, etcd.EmbedConfig{Dir: filepath.Join(cfg.Root, "etcd"), Prefix: cfg.EtcdPrefix, Log: cfg.Log})
	if err != nil {
		return keptStore{}, err
	}
	return keptStore{s, s.Failed(), s.Close}, nil
}

// runOn runs a scheduler on a store, which it does not close.
func runOn(ctx context.Context, cfg Config, s store.Store, failed <-chan struct{}) error {
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	defer listener.Close()
	self, hosts, err := cfg.names(listener.Addr())
	if err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	shared, created, err := openCluster(starting, s, cfg.Stripes)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	authority, err := newAuthority(shared, cfg.CertificateTTL.Duration, hosts)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	joins := &tokens{store: s, pin: api.Pin(authority.ca)}
	if err := firstToken(starting, cfg, joins, created); err != nil {
		return fmt.Errorf("scheduler: join token: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	k, err := newKeeper(ctx, self, cfg, s, newMetrics())
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return failure(ctx, failed) })
	srv := newServer(cfg, k, authority, joins)
	work := newFunctions(ctx, srv, s)
	if err := srv.serve(ctx, group, listener, work); err != nil {
		stop()
		return errors.Join(fmt.Errorf("scheduler: %w", err), group.Wait())
	}
	k.run(ctx, group)
	work.run(ctx, group)
	cfg.Log.Info("scheduler runs", "url", self, "created", created)
	err = group.Wait()
	stop()
	k.tasks.Wait()
	return err
}

// failure returns an error when the store fails for good.
func failure(ctx context.Context, failed <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-failed:
		return errors.New("scheduler: the embedded etcd stopped: see the log, and the free space under root")
	}
}

// names returns the URL by which others know this scheduler, and the hosts that its certificate names.
func (c *Config) names(at net.Addr) (self string, hosts []string, err error) {
	self = c.Advertise
	if self == "" {
		if addr := at.(*net.TCPAddr); addr.IP.IsUnspecified() {
			return "", nil, fmt.Errorf("configuration: listen = %q names no host, so advertise is needed", c.Listen)
		}
		self = "https://" + at.String()
	}
	u, err := url.Parse(self)
	if err != nil {
		return "", nil, fmt.Errorf("configuration: advertise: %w", err)
	}
	hosts = append([]string{u.Hostname(), "localhost", "127.0.0.1", "::1"}, c.Names...)
	slices.Sort(hosts)
	return self, slices.Compact(hosts), nil
}

// firstToken makes the cluster's first token, and writes it where the operator finds it, over one of another cluster. Another scheduler may
// have died before it could: then the file is missing, and so are all tokens.
func firstToken(ctx context.Context, cfg Config, t *tokens, created bool) error {
	text, err := os.ReadFile(cfg.TokenFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if there, err := api.ParseToken(string(text)); err == nil && there.Pin == t.pin {
		return nil
	}
	if !created {
		if list, err := t.list(ctx); err != nil || len(list) > 0 {
			return err
		}
	}
	token, err := t.create(ctx, 0, 0)
	if err != nil {
		return err
	}
	return api.WriteFile(cfg.TokenFile(), []byte(token.String()+"\n"))
}

// run starts what the keeper does by itself.
func (k *keeper) run(ctx context.Context, group *errgroup.Group) {
	for _, task := range []func(context.Context){
		k.announce, k.takeOver, k.watch,
		func(ctx context.Context) { k.follow(ctx, schedulersPrefix, k.setLive) },
		func(ctx context.Context) { k.follow(ctx, revokedPrefix, k.setRevoked) },
	} {
		group.Go(func() error {
			task(ctx)
			return nil
		})
	}
}

// serve starts the servers: for agents and users, for operators, for whoever observes.
func (s *server) serve(ctx context.Context, group *errgroup.Group, public net.Listener, work *functions) error {
	a := &admin{server: s, work: work}
	socket, err := listenUnix(s.cfg.Socket())
	if err != nil {
		return err
	}
	serve(ctx, group, socket, &http.Server{Handler: a.control(a.observability()), ReadHeaderTimeout: headerTimeout}, nil)
	if s.cfg.Admin != "" {
		l, err := net.Listen("tcp", s.cfg.Admin)
		if err != nil {
			return err
		}
		serve(ctx, group, l, &http.Server{Handler: a.observability(), ReadHeaderTimeout: headerTimeout}, nil)
	}
	h := s.http()
	work.employ(ctx, h)
	both := newSplit(netutil.LimitListener(public, s.cfg.Connections))
	both.run(group)
	serve(ctx, group, part{both, both.secure}, h, s.keeper.farewell)
	serve(ctx, group, part{both, both.open}, work.users(), nil)
	a.ready.Store(true)
	return nil
}

// serve serves on l, with TLS if the server has a configuration for it, until ctx ends. Then it calls farewell and lets running
// calls finish for a moment.
func serve(ctx context.Context, group *errgroup.Group, l net.Listener, h *http.Server, farewell func()) {
	group.Go(func() error {
		var err error
		if h.TLSConfig != nil {
			err = h.ServeTLS(l, "", "")
		} else {
			err = h.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	})
	group.Go(func() error {
		<-ctx.Done()
		if farewell != nil {
			farewell()
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if h.Shutdown(grace) != nil {
			h.Close() //nolint:errcheck // Shutdown's error says it
		}
		return nil
	})
}

// farewell ends all sessions.
func (k *keeper) farewell() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range k.agents {
		if a.session != nil {
			a.session.end("the scheduler stops")
		}
	}
}
