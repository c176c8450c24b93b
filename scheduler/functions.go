package scheduler

import (
	"context"
	"crypto/tls"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/scheduler/access"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/invoke"
	"github.com/xylem-project/xylem/scheduler/store"
)

// functions is the part of a scheduler that runs functions on agents. It shares the store and the list of schedulers with the part that
// owns trees, and nothing else.
type functions struct {
	server     *server
	fleet      *fleet.Fleet
	registry   *function.Registry
	dispatcher *invoke.Dispatcher
	events     *invoke.Events
	keys       *access.Keys
	open       http.Handler // the API of users for those who need no key
	guarded    http.Handler // and for those who do
}

// pollEvery is how often agents are asked what their nodes can run.
const pollEvery = 5 * time.Second

func newFunctions(ctx context.Context, srv *server, s store.Store) *functions {
	k, log := srv.keeper, srv.cfg.Log
	f := &functions{server: srv, fleet: fleet.New(invoke.Prefix(k.self), pollEvery, log)}
	f.registry = function.New(s, invoke.Images{Fleet: f.fleet}, log)
	f.dispatcher = invoke.NewDispatcher(ctx, invoke.Config{
		Self: k.self, Fleet: f.fleet, Functions: f.registry, Queue: srv.cfg.Queue, Mine: k.isMine, Log: log})
	f.events = invoke.NewEvents(invoke.EventsConfig{
		Self: k.self, Store: s, Functions: f.registry, Invoke: f.dispatcher.Invoke, Adopts: k.adopts, Log: log})
	srv.metrics.registry.MustRegister(append(f.dispatcher.Collectors(), f.events.Collectors()...)...)
	f.keys = access.New(s, log)
	f.open = invoke.NewGateway(f.registry, f.dispatcher, f.events, log)
	f.guarded = f.keys.Guard(f.open, invoke.Refuse)
	if srv.cfg.AuthLoopback {
		f.open = f.guarded
	}
	return f
}

// run starts what it does by itself.
func (f *functions) run(ctx context.Context, group *errgroup.Group) {
	for _, task := range []func(context.Context){
		f.registry.Run, f.dispatcher.Run, f.events.Run, f.keys.Run,
		func(ctx context.Context) { f.server.keeper.follow(ctx, revokedPrefix, f.disconnect) },
	} {
		group.Go(func() error {
			task(ctx)
			return nil
		})
	}
}

func (f *functions) disconnect(peers []string) {
	for _, peer := range peers {
		f.fleet.Disconnect(peer)
	}
}

// employ serves the work connections of agents on h.
func (f *functions) employ(ctx context.Context, h *http.Server) {
	h.Handler = f.withUsers(h.Handler)
	h.TLSConfig.NextProtos = []string{"h2", "http/1.1", api.WorkProtocol}
	h.Protocols = new(http.Protocols)
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		api.WorkProtocol: func(_ *http.Server, conn *tls.Conn, _ http.Handler) {
			if err := f.employOne(ctx, conn); err != nil && ctx.Err() == nil {
				f.server.cfg.Log.Info("an agent's work connection ended", "from", conn.RemoteAddr(), "err", err)
			}
		},
	}
}

// withUsers adds the API of users to that of agents.
func (f *functions) withUsers(agents http.Handler) http.Handler {
	users := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).SetReadDeadline(time.Time{}) //nolint:errcheck // payloads may stream for long
		f.guarded.ServeHTTP(w, r)
	})
	mux := http.NewServeMux()
	mux.Handle("/", agents)
	for _, path := range invoke.Paths {
		mux.Handle(path, users)
	}
	return mux
}

func (f *functions) employOne(ctx context.Context, conn *tls.Conn) error {
	peer, err := f.server.peerOf(conn.ConnectionState())
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return f.fleet.Serve(ctx, peer, conn)
}

// isMine says whether this scheduler, of those that live, does what one of them has to do for a name.
func (k *keeper) isMine(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leased && rendezvous(name, k.live) == k.self
}

// adopts says whether this scheduler takes over what another left that lives no more.
func (k *keeper) adopts(scheduler string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leased && !slices.Contains(k.live, scheduler) && rendezvous(scheduler, k.live) == k.self
}
