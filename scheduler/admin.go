package scheduler

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// admin is what operators ask of a scheduler on its own machine.
type admin struct {
	server *server
	work   *functions
	ready  atomic.Bool
}

// observability serves what anybody on the machine may see: /metrics, /livez, /readyz.
func (a *admin) observability() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.server.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.isReady(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

func (a *admin) isReady() error {
	if !a.ready.Load() {
		return errors.New("starting")
	}
	a.server.keeper.mu.Lock()
	defer a.server.keeper.mu.Unlock()
	return a.server.keeper.mayChange()
}

// control adds the calls of the xylem command, which only root reaches through the unix socket.
func (a *admin) control(mux *http.ServeMux) *http.ServeMux {
	s := a.server
	mux.Handle("POST /v1/tokens", s.call("admin", func(r *http.Request) (any, error) {
		request, err := decodeBody[api.TokenRequest](r)
		if err != nil {
			return nil, err
		}
		token, err := s.tokens.create(r.Context(), request.TTL, request.Uses)
		return api.TokenResponse{ID: token.ID, Token: token.String()}, err
	}))
	mux.Handle("GET /v1/tokens", s.call("admin", func(r *http.Request) (any, error) { return s.tokens.list(r.Context()) }))
	mux.Handle("DELETE /v1/tokens/{id}", s.call("admin", func(r *http.Request) (any, error) {
		return struct{}{}, s.tokens.revoke(r.Context(), r.PathValue("id"))
	}))
	a.keys(mux)
	mux.Handle("GET /v1/revoked", s.call("admin", func(*http.Request) (any, error) {
		s.keeper.mu.Lock()
		defer s.keeper.mu.Unlock()
		return append([]string{}, s.keeper.revocations()...), nil
	}))
	mux.Handle("PUT /v1/revoked/{peer}", s.call("admin", func(r *http.Request) (any, error) {
		return struct{}{}, s.revoke(r.Context(), r.PathValue("peer"))
	}))
	mux.Handle("DELETE /v1/revoked/{peer}", s.call("admin", func(r *http.Request) (any, error) {
		return struct{}{}, s.pardon(r.Context(), r.PathValue("peer"))
	}))
	mux.Handle("GET /v1/agents", s.call("admin", func(*http.Request) (any, error) { return s.keeper.listAgents(), nil }))
	mux.Handle("GET "+api.PathTrees, s.call("admin", func(r *http.Request) (any, error) { return s.trees(r, "") }))
	mux.Handle("GET "+api.PathTrees+"/{image}", s.call("admin", func(r *http.Request) (any, error) { return s.tree(r, "") }))
	return mux
}

// keys adds the calls about users' access keys, and what else they need to connect.
func (a *admin) keys(mux *http.ServeMux) {
	s := a.server
	mux.Handle("POST /v1/keys", s.call("admin", func(r *http.Request) (any, error) {
		request, err := decodeBody[api.KeyRequest](r)
		if err != nil {
			return nil, err
		}
		return a.work.keys.Create(r.Context(), request)
	}))
	mux.Handle("GET /v1/ca", s.call("admin", func(*http.Request) (any, error) {
		return api.CAResponse{PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.authority.ca.Raw}))}, nil
	}))
	mux.Handle("GET /v1/keys", s.call("admin", func(r *http.Request) (any, error) { return a.work.keys.List(r.Context()) }))
	mux.Handle("DELETE /v1/keys/{id}", s.call("admin", func(r *http.Request) (any, error) {
		return struct{}{}, a.work.keys.Revoke(r.Context(), r.PathValue("id"))
	}))
}

// revoke takes an agent out of the cluster. All schedulers and agents hear of it.
func (s *server) revoke(ctx context.Context, peer string) error {
	if err := api.ValidPeerID(peer); err != nil {
		return fmt.Errorf("%w: %w", errInvalid, err)
	}
	_, err := s.keeper.store.Write(ctx, store.Tx{Put: []store.Item{item(revokedPrefix+peer, revocation{time.Now().UTC()})}})
	return err
}

// pardon lets a revoked agent join again.
func (s *server) pardon(ctx context.Context, peer string) error {
	key := revokedPrefix + peer
	_, err := s.keeper.store.Write(ctx, store.Tx{If: []store.Condition{{Key: key, Revision: store.Exists}}, Delete: []string{key}})
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("revoked agent %.80q: %w", digest.Digest(peer), errNotFound)
	}
	return err
}

// quiet logs what net/http has to say, mostly of clients that went away, for those who look for a fault.
func quiet(l *slog.Logger) *log.Logger { return log.New(lines{l}, "", 0) }

type lines struct{ log *slog.Logger }

func (l lines) Write(line []byte) (int, error) {
	l.log.Debug(strings.TrimSpace(string(line)))
	return len(line), nil
}

var _ io.Writer = lines{}

// listenUnix listens on a socket that only root may use. A socket that a dead scheduler left is removed; one that answers is
// another scheduler's.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: another scheduler is running with this state directory", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
