package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxRequest bounds the body of a call to the admin API, in bytes.
const maxRequest = 64 << 10

// observability serves what anybody on the machine may see: /metrics, /livez, /readyz.
func (a *agent) observability() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("GET /livez", ok)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if !a.ready.Load() {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		ok(w, r)
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// control adds the calls of the xylem command, which only root reaches through the unix socket.
func (a *agent) control(mux *http.ServeMux) *http.ServeMux {
	handle := func(pattern string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			result, err := do(r)
			if err != nil {
				http.Error(w, strings.ReplaceAll(err.Error(), "\n", "; "), statusOf(err))
				return
			}
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(result) //nolint:errcheck // the client is gone
		})
	}
	handle("GET /v1/images", func(*http.Request) (any, error) { return a.images.list(), nil })
	handle("POST /v1/mounts", call(a.mountAt))
	handle("DELETE /v1/mounts", call(a.unmountAt))
	handle("POST /v1/recordings", call(func(ctx context.Context, req ImageRequest) (any, error) {
		return struct{}{}, a.images.StartRecording(ctx, req.Ref)
	}))
	handle("DELETE /v1/recordings", call(func(ctx context.Context, req ImageRequest) (any, error) {
		p, err := a.images.StopRecording(ctx, req.Ref)
		return RecordingResult{Profile: string(p.Encode())}, err
	}))
	handle("GET /v1/trees", func(r *http.Request) (any, error) {
		if a.cluster == nil {
			return nil, errNoCluster
		}
		return a.cluster.client.Trees(r.Context())
	})
	handle("GET /v1/trees/{image}", func(r *http.Request) (any, error) {
		image, err := digest.Parse(r.PathValue("image"))
		if err != nil {
			return nil, badRequest{fmt.Errorf("image %q: %w", r.PathValue("image"), err)}
		}
		if a.cluster == nil {
			return nil, errNoCluster
		}
		return a.cluster.client.Tree(r.Context(), image)
	})
	handle("GET /v1/cache", func(*http.Request) (any, error) { return a.cache.List(), nil })
	handle("POST /v1/cache/gc", func(r *http.Request) (any, error) {
		removed, err := a.images.prune(r.Context())
		return GCResult{FreedBytes: a.cache.GC(0), Images: removed}, err
	})
	handle("POST /v1/cache/scrub", func(r *http.Request) (any, error) { return a.cache.Scrub(r.Context(), 0) })
	return mux
}

var errNoCluster = badRequest{errors.New("the agent is in no cluster: set schedulers in its configuration")}

// call decodes a request's JSON strictly and runs do.
func call[T, R any](do func(context.Context, T) (R, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var req T
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			return nil, badRequest{fmt.Errorf("request: %w", err)}
		}
		return do(r.Context(), req)
	}
}

type badRequest struct{ error }

func statusOf(err error) int {
	var bad badRequest
	switch {
	case errors.As(err, &bad):
		return http.StatusBadRequest
	case errors.Is(err, blockfmt.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, blockfmt.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, blockfmt.ErrTransient):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// serve serves h on l until ctx ends, then lets running calls finish for a moment.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	return serveWith(ctx, l, &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second})
}

func serveWith(ctx context.Context, l net.Listener, srv *http.Server) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		srv.Close() //nolint:errcheck // Shutdown's error says it
	}
	<-done
	return nil
}

// listenUnix listens on a socket that only root may use. A socket that a dead agent left is removed; one that answers is
// another agent's.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: another agent is running with this state directory", path)
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
