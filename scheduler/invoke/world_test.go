package invoke_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/invoke"
	"github.com/xylem-project/xylem/scheduler/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// program is what instances of a function do with an invocation.
type program func(w http.ResponseWriter, r *http.Request)

// node is an agent whose instances are functions of Go. It obeys package api's contract.
type node struct {
	mux     *http.ServeMux
	program program
	start   func(api.Function) *api.WorkFailure // why an instance does not start; default: it does
	starts  atomic.Int64
	memory  int64

	mu        sync.Mutex
	instances map[string]api.Instance
}

func newNode(p program) *node {
	n := &node{mux: http.NewServeMux(), memory: 1 << 30, instances: map[string]api.Instance{}, program: p}
	n.mux.HandleFunc("GET "+api.WorkNode, n.status)
	n.mux.HandleFunc("PUT "+api.WorkInstances+"/{id}", n.startInstance)
	n.mux.HandleFunc("DELETE "+api.WorkInstances+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		n.kill(r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	})
	n.mux.HandleFunc("POST "+api.WorkInstances+"/{id}/invoke", n.invoke)
	n.mux.HandleFunc("GET "+api.WorkLogs+"/{namespace}/{name}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.LogLine{Text: "hello"})
	})
	return n
}

func (n *node) status(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := api.NodeStatus{Memory: n.memory, CPU: 100_000}
	for _, i := range n.instances {
		s.Instances = append(s.Instances, i)
	}
	answer(w, s)
}

func (n *node) startInstance(w http.ResponseWriter, r *http.Request) {
	var request api.StartRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		fail(w, api.FailureImage, err.Error())
		return
	}
	n.starts.Add(1)
	if n.start != nil {
		if f := n.start(request.Function); f != nil {
			fail(w, f.Kind, f.Error)
			return
		}
	}
	i := api.Instance{ID: r.PathValue("id"), Function: request.Function, State: api.InstanceReady}
	n.mu.Lock()
	n.instances[i.ID] = i
	n.mu.Unlock()
	answer(w, i)
}

func (n *node) invoke(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	i, ok := n.instances[r.PathValue("id")]
	n.mu.Unlock()
	if !ok {
		fail(w, api.FailureNoInstance, "no such instance")
		return
	}
	w.Header().Set("Instance", i.ID)
	n.program(w, r)
}

// kill forgets an instance, as if its process had ended.
func (n *node) kill(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.instances, id)
}

func (n *node) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.instances)
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value) //nolint:errcheck // the test is over
}

func fail(w http.ResponseWriter, kind, text string) {
	w.Header().Set(api.HeaderFailure, kind)
	w.WriteHeader(http.StatusConflict)
	answer(w, api.WorkFailure{Kind: kind, Error: text})
}

func echo(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	w.Write(text) //nolint:errcheck // the test is over
}

// world is the invoking part of a scheduler, over a store.
type world struct {
	t          *testing.T
	store      store.Store
	functions  *function.Registry
	fleet      *fleet.Fleet
	dispatcher *invoke.Dispatcher
	api        *httptest.Server
	ctx        context.Context
	stop       func()
}

// registry has every image.
type registry struct{}

func (registry) Resolve(ctx context.Context, image string) (api.ImageAnswer, error) {
	return api.ImageAnswer{Digest: digest.FromString(image), Entrypoint: []string{"/app"}}, ctx.Err()
}

const self = "https://scheduler:1"

func newWorld(t *testing.T, s store.Store) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("DEBUG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{t: t, store: s, ctx: ctx, functions: function.New(s, registry{}, log), fleet: fleet.New(invoke.Prefix(self), 100*time.Millisecond, log)}
	w.dispatcher = invoke.NewDispatcher(ctx, invoke.Config{Self: self, Fleet: w.fleet, Functions: w.functions, Queue: 100, Mine: func(string) bool { return true }, Log: log})
	events := invoke.NewEvents(invoke.EventsConfig{Self: self, Store: s, Functions: w.functions, Invoke: w.dispatcher.Invoke, Adopts: func(string) bool { return false }, Log: log})
	var tasks sync.WaitGroup
	for _, run := range []func(context.Context){w.functions.Run, w.dispatcher.Run, events.Run} {
		tasks.Go(func() { run(ctx) })
	}
	w.api = httptest.NewServer(invoke.NewGateway(w.functions, w.dispatcher, events, log))
	w.stop = sync.OnceFunc(func() {
		cancel()
		w.api.Close()
		tasks.Wait()
	})
	t.Cleanup(w.stop)
	return w
}

// node adds a node.
func (w *world) node(p program) *node {
	w.t.Helper()
	n := newNode(p)
	w.connect(n)
	return n
}

var peers atomic.Int64

// connect connects a node to the scheduler.
func (w *world) connect(n *node) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			api.ServeWork(ctx, conn, n.mux) //nolint:errcheck // it ends with the test
		}
	})
	conn, err := l.Accept()
	l.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	peer := fmt.Sprintf("node-%d", peers.Add(1))
	tasks.Go(func() { w.fleet.Serve(ctx, peer, conn) }) //nolint:errcheck // it ends with the test
	w.t.Cleanup(func() { cancel(); tasks.Wait() })
	w.until("the node is known", func() bool { return len(w.fleet.Nodes()) > 0 })
}

// until waits for something that happens by itself.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// create makes a function, and waits until it is known.
func (w *world) create(spec api.FunctionSpec) {
	w.t.Helper()
	spec.Image = "r.example/app:1"
	text, err := json.Marshal(spec)
	if err != nil {
		w.t.Fatal(err)
	}
	if status, body, _ := w.do(http.MethodPost, "/v1/functions", string(text), nil); status != http.StatusCreated {
		w.t.Fatalf("create: %d %s", status, body)
	}
	w.known(spec.Name)
}

// known waits until a function is known.
func (w *world) known(name string) {
	w.t.Helper()
	w.until("the function is known", func() bool { _, err := w.functions.Lookup("default", name, ""); return err == nil })
}

// do sends a request to the API. If the answer breaks off, the body is the error.
func (w *world) do(method, path, body string, header map[string]string) (int, string, http.Header) {
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.api.URL+path, bytes.NewReader([]byte(body)))
	if err != nil {
		w.t.Error(err)
		return 0, "", nil
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	resp, err := w.api.Client().Do(req)
	if err != nil {
		w.t.Error(err)
		return 0, "", nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err.Error(), resp.Header
	}
	return resp.StatusCode, string(text), resp.Header
}

// waiting counts the asynchronous invocations in the store.
func (w *world) waiting() int {
	items, err := w.store.Read(w.t.Context(), "events/")
	if err != nil {
		w.t.Error(err)
	}
	return len(items)
}

func awsPath(name string) string { return "/2015-03-31/functions/" + name + "/invocations" }
