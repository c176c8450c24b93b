package functions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/scheduler/api"
)

// must is for steps that are not what a test is about.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a containerd with a registry, and an executor with its handler served over HTTP.
type world struct {
	t        *testing.T
	dir      string
	daemon   *containerdtest.Daemon
	registry string
	config   executor.Config
	server   *httptest.Server
	handler  http.Handler
	stop     func()
}

// start makes a world; change changes the executor's configuration.
func start(t *testing.T, change func(*executor.Config)) *world {
	t.Helper()
	w := &world{t: t, dir: shortDir(t)}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections) // of pulls and pushes
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	w.registry = strings.TrimPrefix(reg.URL, "http://")
	var err error
	w.daemon, err = containerdtest.Start(t.Context(), w.options())
	must(t, err)
	t.Cleanup(func() { must(t, w.daemon.Stop()) })
	w.config = w.executorConfig("overlayfs")
	t.Cleanup(func() { must(t, containerdtest.RemoveNamespace(w.config.Namespace)) })
	if change != nil {
		change(&w.config)
	}
	w.run()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) executorConfig(snapshotter string) executor.Config {
	return executor.Config{
		State: filepath.Join(w.dir, "s"), Containerd: w.daemon.Address, Namespace: "fn-" + filepath.Base(w.dir), Snapshotter: snapshotter,
		Resolver: docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))}),
		Images:   noImages{}, Memory: 4 << 30, CPU: 100_000, PauseAfter: -1, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
}

func (w *world) options() containerdtest.Options {
	return containerdtest.Options{Dir: filepath.Join(w.dir, "c"), Registries: []string{w.registry}}
}

// restartContainerd kills the daemon and starts it again.
func (w *world) restartContainerd() {
	w.t.Helper()
	must(w.t, w.daemon.Kill())
	daemon, err := containerdtest.Start(w.t.Context(), w.options())
	must(w.t, err)
	w.daemon = daemon
}

// shortDir is for sockets, whose paths must be short.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/var/tmp", "xfn")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

// run runs an executor until w.stop.
func (w *world) run() {
	w.t.Helper()
	e, err := executor.New(w.config)
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	w.handler = e.Handler()
	w.server = httptest.NewUnstartedServer(w.handler)
	w.server.EnableHTTP2 = true
	w.server.StartTLS()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		w.server.Close()
		if left := mountsBelow(w.t, w.config.State); len(left) > 0 {
			w.t.Errorf("still mounted: %v", left)
		}
	})
	eventually(w.t, "the executor runs", func() bool {
		f := w.startInstance("probe", api.Function{FunctionSpec: api.FunctionSpec{Name: "probe", Image: "x", Memory: 1 << 40}, Version: 1, Digest: digest.FromString("x")})
		return f.failure != nil && !strings.Contains(f.failure.Error, "not running")
	})
}

func mountsBelow(t *testing.T, dir string) (found []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

// eventually polls, for what nobody announces.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if check() {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// noImages answers for an agent that holds none.
type noImages struct{}

func (noImages) Held() []digest.Digest { return nil }
func (noImages) Resolve(context.Context, string) (api.ImageAnswer, error) {
	return api.ImageAnswer{}, errors.New("no such image")
}

// programs are built once for all tests.
var programs = map[api.Contract]func() ([]byte, error){
	api.ContractLambda: sync.OnceValues(func() ([]byte, error) { return build("lambda") }),
	api.ContractHTTP:   sync.OnceValues(func() ([]byte, error) { return build("http") }),
}

func build(name string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "fn")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "../../functions/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(err, errors.New(string(out)))
	}
	return os.ReadFile(path)
}

// function pushes the image of a contract's program and returns a function of it.
func (w *world) function(contract api.Contract, change func(*api.Function)) api.Function {
	w.t.Helper()
	program, err := programs[contract]()
	must(w.t, err)
	image, err := containerdtest.Image([]string{"/bin/fn"}, map[string][]byte{"bin/fn": program})
	must(w.t, err)
	return w.functionOf(contract, image, change)
}

func (w *world) functionOf(contract api.Contract, image v1.Image, change func(*api.Function)) api.Function {
	w.t.Helper()
	tag, err := name.NewTag(w.registry + "/" + string(contract) + ":1")
	must(w.t, err)
	must(w.t, remote.Write(tag, image))
	d, err := image.Digest()
	must(w.t, err)
	fn := api.Function{FunctionSpec: api.FunctionSpec{Name: "fn-" + string(contract), Image: tag.String(), Contract: contract}, Version: 1, Digest: digest.Digest(d.String())}
	if change != nil {
		change(&fn)
	}
	fn.FunctionSpec, err = fn.Complete()
	must(w.t, err)
	return fn
}

// answer is what the handler said.
type answer struct {
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
	failure *api.WorkFailure
}

func (w *world) do(req *http.Request) answer {
	w.t.Helper()
	resp, err := w.server.Client().Do(req)
	must(w.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(w.t, err)
	a := answer{resp.StatusCode, resp.Header, resp.Trailer, body, nil}
	if kind := resp.Header.Get(api.HeaderFailure); kind != "" {
		a.failure = &api.WorkFailure{}
		must(w.t, json.Unmarshal(body, a.failure))
		if a.failure.Kind != kind {
			w.t.Errorf("header says %s, body %+v", kind, a.failure)
		}
	}
	return a
}

func (w *world) request(method, path string, body io.Reader) *http.Request {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, body)
	must(w.t, err)
	return req
}

func (w *world) startInstance(id string, fn api.Function) answer {
	w.t.Helper()
	body, err := json.Marshal(api.StartRequest{Function: fn})
	must(w.t, err)
	return w.do(w.request(http.MethodPut, api.WorkInstances+"/"+id, bytes.NewReader(body)))
}

// instance starts one that has to become ready.
func (w *world) instance(id string, fn api.Function) api.Instance {
	w.t.Helper()
	a := w.startInstance(id, fn)
	if a.failure != nil {
		w.t.Fatalf("%s did not start: %+v", id, *a.failure)
	}
	var in api.Instance
	must(w.t, json.Unmarshal(a.body, &in))
	return in
}

func (w *world) delete(id string) {
	w.t.Helper()
	if a := w.do(w.request(http.MethodDelete, api.WorkInstances+"/"+id, nil)); a.status != http.StatusNoContent {
		w.t.Errorf("delete %s: %d %s", id, a.status, a.body)
	}
}

// invoke invokes an instance. Headers come in pairs.
func (w *world) invoke(id, body string, headers ...string) answer {
	w.t.Helper()
	return w.do(w.invocation(id, strings.NewReader(body), headers...))
}

func (w *world) invocation(id string, body io.Reader, headers ...string) *http.Request {
	w.t.Helper()
	req := w.request(http.MethodPost, api.WorkInstances+"/"+id+"/"+api.WorkInvoke, body)
	req.Header.Set(api.HeaderInvocation, "inv-"+id)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func (w *world) node() api.NodeStatus {
	w.t.Helper()
	var s api.NodeStatus
	must(w.t, json.Unmarshal(w.do(w.request(http.MethodGet, api.WorkNode, nil)).body, &s))
	return s
}

func (w *world) state(id string) api.InstanceState {
	w.t.Helper()
	for _, in := range w.node().Instances {
		if in.ID == id {
			return in.State
		}
	}
	return api.InstanceGone
}

func (w *world) logs(fn api.Function) (lines []api.LogLine) {
	w.t.Helper()
	dec := json.NewDecoder(bytes.NewReader(w.do(w.request(http.MethodGet, api.WorkLogs+"/"+fn.Namespace+"/"+fn.Name, nil)).body))
	for dec.More() {
		var line api.LogLine
		must(w.t, dec.Decode(&line))
		lines = append(lines, line)
	}
	return lines
}
