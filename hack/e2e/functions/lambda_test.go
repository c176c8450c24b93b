package functions

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/scheduler/api"
)

// said is what the lambda program answers.
type said struct {
	Text     string            `json:"text"`
	ID       string            `json:"id"`
	ARN      string            `json:"arn"`
	Trace    string            `json:"trace"`
	Deadline int64             `json:"deadline"`
	Client   map[string]string `json:"client"`
	Env      []string          `json:"env"`
	Count    int               `json:"count"`
}

// ask invokes the lambda program, which has to answer.
func (w *world) ask(id, payload string, headers ...string) (s said) {
	w.t.Helper()
	a := w.invoke(id, payload, headers...)
	if a.failure != nil || a.header.Get(api.HeaderFunctionError) != "" {
		w.t.Fatalf("%s: %+v %v %s", payload, a.failure, a.header, a.body)
	}
	must(w.t, json.Unmarshal(a.body, &s))
	return s
}

// fails invokes an instance, which has to fail in a way.
func (w *world) fails(kind, id, payload string, headers ...string) api.WorkFailure {
	w.t.Helper()
	a := w.invoke(id, payload, headers...)
	if a.failure == nil || a.failure.Kind != kind {
		w.t.Fatalf("%s: want %s, got %d %+v %.200s", payload, kind, a.status, a.failure, a.body)
	}
	return *a.failure
}

// gone waits until nothing of an instance is left.
func (w *world) gone(id string) {
	w.t.Helper()
	eventually(w.t, id+" is gone", func() bool { return w.state(id) == api.InstanceGone })
}

func TestInvoke(t *testing.T) {
	w := start(t, nil)
	in := w.instance("a", w.function(api.ContractLambda, nil))
	if in.State != api.InstanceReady || in.Ready <= 0 {
		t.Errorf("started: %+v", in)
	}
	for n := range 3 {
		if s := w.ask("a", `{"do":"echo","text":"hi"}`); s.Text != "hi" || s.Count != n+1 {
			t.Errorf("invocation %d: %+v", n, s)
		}
	}
	again := w.instance("a", w.function(api.ContractLambda, nil))
	if !again.Started.Equal(in.Started) {
		t.Error("asking for the same instance again started another one")
	}
	w.delete("a")
	w.fails(api.FailureNoInstance, "a", `{}`)
}

func TestContext(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, func(fn *api.Function) {
		fn.Version, fn.Args, fn.Memory, fn.Env = 7, []string{"app.handler"}, 192<<20, map[string]string{"MINE": "x=y", "AWS_REGION": "moon-1"}
	})
	w.instance("a", fn)
	deadline := time.Now().Add(17 * time.Second).UnixMilli()
	s := w.ask("a", `{"do":"context"}`, api.HeaderInvocation, "8f507cfc-xmpl-4697-b07a-ac58fc914c95", api.HeaderDeadline, strconv.FormatInt(deadline, 10),
		api.HeaderTrace, "Root=1-5759e988-bd862e3fe1be46a994272793", api.HeaderClientContext, base64.StdEncoding.EncodeToString([]byte(`{"custom":{"color":"red"}}`)))
	if s.ID != "8f507cfc-xmpl-4697-b07a-ac58fc914c95" || s.Deadline != deadline || s.ARN != fn.ARN() || s.Client["color"] != "red" ||
		s.Trace != "Root=1-5759e988-bd862e3fe1be46a994272793" {
		t.Errorf("the function saw %+v", s)
	}
	for _, want := range []string{"MINE=x=y", "AWS_REGION=moon-1", "_HANDLER=app.handler", "AWS_LAMBDA_FUNCTION_VERSION=7", "AWS_LAMBDA_FUNCTION_NAME=fn-lambda",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=192", "LAMBDA_TASK_ROOT=/var/task"} {
		if !slices.Contains(s.Env, want) {
			t.Errorf("no %s in %q", want, s.Env)
		}
	}
	if a := w.invoke("a", "{}", api.HeaderClientContext, "*"); a.status != http.StatusBadRequest {
		t.Errorf("a client context that is no base64: %d %s", a.status, a.body)
	}
}

func TestFunctionErrors(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, nil))
	for _, do := range []string{"error", "panic"} {
		a := w.invoke("a", fmt.Sprintf(`{"do":%q,"text":"no luck"}`, do))
		var e struct{ ErrorType, ErrorMessage string }
		must(t, json.Unmarshal(a.body, &e))
		if a.status != http.StatusOK || a.header.Get(api.HeaderFunctionError) == "" || e.ErrorMessage != "no luck" {
			t.Errorf("%s: %d %v %s", do, a.status, a.header, a.body)
		}
	}
	w.gone("a") // the library ends the program after a panic
}

func TestGarbage(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, nil))
	a := w.invoke("a", "{not json")
	if a.header.Get(api.HeaderFunctionError) == "" || !strings.Contains(string(a.body), "invalid character") {
		t.Errorf("a payload that is no JSON: %d %v %s", a.status, a.header, a.body)
	}
}

func TestTimeoutKillsLambda(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, nil)
	w.instance("a", fn)
	begin := time.Now()
	f := w.fails(api.FailureTimeout, "a", `{"do":"sleep","timeout":60000000000}`, api.HeaderDeadline, unixMilli(begin.Add(300*time.Millisecond)))
	if took := time.Since(begin); took < 299*time.Millisecond || took > 5*time.Second {
		t.Errorf("%+v came after %v", f, took)
	}
	w.gone("a")
	w.instance("b", fn)
	w.ask("b", `{"do":"echo"}`)
}

func TestExitInTheMiddle(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, nil))
	f := w.fails(api.FailureExited, "a", `{"do":"exit"}`)
	if !strings.Contains(f.Error, "exit code 7") || !strings.Contains(f.Log, "leaving") {
		t.Errorf("%+v", f)
	}
	w.gone("a")
}

func TestInitFailures(t *testing.T) {
	w := start(t, nil)
	for init, want := range map[string][2]string{
		"exit": {"exit code 3", "no database"}, "error": {`"errorMessage":"no database"`, "reported"}, "never": {"did not ask for an invocation", "still thinking"},
	} {
		fn := w.function(api.ContractLambda, func(fn *api.Function) {
			fn.Name, fn.Env, fn.StartTimeout.Duration = "fn-"+init, map[string]string{"INIT": init}, 5*time.Second
		})
		a := w.startInstance(init, fn)
		if a.failure == nil || a.failure.Kind != api.FailureInit || !strings.Contains(a.failure.Error, want[0]) || !strings.Contains(a.failure.Log, want[1]) {
			t.Errorf("%s: %d %+v", init, a.status, a.failure)
		}
		w.gone(init)
	}
}

func TestCannotRun(t *testing.T) {
	w := start(t, nil)
	noProgram := w.function(api.ContractLambda, func(fn *api.Function) { fn.Command = []string{"/bin/nothing"} })
	noImage := noProgram
	noImage.Digest = "sha256:" + noImage.Digest[len("sha256:")+1:] + "0"
	for id, fn := range map[string]api.Function{"program": noProgram, "image": noImage} {
		if a := w.startInstance(id, fn); a.failure == nil || a.failure.Kind != api.FailureImage {
			t.Errorf("no %s: %d %+v", id, a.status, a.failure)
		}
		w.gone(id)
	}
}

// TestCrashLoop: a version that fails again and again is refused with the reason, for a time that grows. Other versions are not.
func TestCrashLoop(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.Failures, cfg.Backoff, cfg.MaxBackoff = 2, time.Hour, time.Hour })
	fn := w.function(api.ContractLambda, func(fn *api.Function) { fn.Env = map[string]string{"INIT": "exit"} })
	for i := range 2 {
		w.startInstance(fmt.Sprint("try", i), fn)
		w.gone(fmt.Sprint("try", i))
	}
	a := w.startInstance("refused", fn)
	if a.failure == nil || a.failure.Kind != api.FailureInit || a.header.Get("Retry-After") != "3600" ||
		!strings.Contains(a.failure.Error, "failed 2 times") || !strings.Contains(a.failure.Error, "exit code 3") || !strings.Contains(a.failure.Log, "no database") {
		t.Errorf("%d %v %+v", a.status, a.header, a.failure)
	}
	fixed := w.function(api.ContractLambda, func(fn *api.Function) { fn.Version = 2 })
	w.instance("fixed", fixed)
}

func TestLargePayloads(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, func(fn *api.Function) { fn.Memory = 512 << 20 }))
	text := strings.Repeat("x", api.MaxPayload-1000)
	if s := w.ask("a", `{"do":"echo","text":"`+text+`"}`); s.Text != text {
		t.Errorf("%d bytes came back as %d", len(text), len(s.Text))
	}
	w.fails(api.FailureTooLarge, "a", `{"do":"echo","text":"`+text+strings.Repeat("x", 1000)+`"}`)
	w.fails(api.FailureTooLarge, "a", `{"do":"answer","bytes":7000000}`)
	w.gone("a") // the library ends the program when its answer is refused
}

func TestMemoryLimit(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, func(fn *api.Function) { fn.Memory = 64 << 20 }))
	f := w.fails(api.FailureExited, "a", `{"do":"memory","bytes":200000000}`)
	if !strings.Contains(f.Error, "64 MiB of memory") {
		t.Errorf("%+v", f)
	}
	w.gone("a")
}

func TestForkBomb(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.PIDs = 64 })
	w.instance("a", w.function(api.ContractLambda, func(fn *api.Function) { fn.Memory = 512 << 20 }))
	a := w.invoke("a", `{"do":"bomb"}`)
	var s said
	if a.failure == nil { // or the bomb hit the program itself
		must(t, json.Unmarshal(a.body, &s))
		if n, err := strconv.Atoi(s.Text); err != nil || n >= 64 {
			t.Errorf("%s processes started, %v", s.Text, err)
		}
	}
	w.delete("a")
	w.instance("b", w.function(api.ContractLambda, nil))
	w.ask("b", `{"do":"echo"}`)
}

func TestBusy(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, nil))
	done := make(chan answer, 1)
	go func() { done <- w.invoke("a", `{"do":"sleep","timeout":3000000000}`) }()
	eventually(t, "the first one runs", func() bool { return w.node().Instances[0].InFlight == 1 })
	w.fails(api.FailureBusy, "a", `{"do":"echo"}`)
	if a := <-done; a.failure != nil {
		t.Errorf("the first one: %+v", a.failure)
	}
	w.ask("a", `{"do":"echo"}`)
}

func TestNoRoom(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.Memory, cfg.CPU = 300<<20, 2500 })
	fn := w.function(api.ContractLambda, nil)
	w.instance("a", fn)
	w.instance("b", fn)
	if a := w.startInstance("c", fn); a.failure == nil || a.failure.Kind != api.FailureNoRoom {
		t.Errorf("a third one in 300 MiB: %+v", a.failure)
	}
	w.delete("a")
	w.instance("c", fn)
	w.delete("c")
	fn.CPU = 2000
	if a := w.startInstance("d", fn); a.failure == nil || a.failure.Kind != api.FailureNoRoom {
		t.Errorf("two cores of 2.5, of which one is taken: %+v", a.failure)
	}
}

// TestPause: with cgroups written directly, and by the runtime, which is what the executor does with one that it does not know.
func TestPause(t *testing.T) {
	shim, err := exec.LookPath("containerd-shim-runc-v2")
	must(t, err)
	for name, runtime := range map[string]string{"directly": "", "by the runtime": shim} {
		t.Run(name, func(t *testing.T) {
			w := start(t, func(cfg *executor.Config) { cfg.PauseAfter, cfg.Runtime = 50*time.Millisecond, runtime })
			w.instance("a", w.function(api.ContractLambda, nil))
			for range 3 {
				eventually(t, "it is paused", func() bool { return w.state("a") == api.InstancePaused })
				if s := w.ask("a", `{"do":"echo","text":"awake"}`); s.Text != "awake" {
					t.Errorf("%+v", s)
				}
			}
			eventually(t, "it is paused", func() bool { return w.state("a") == api.InstancePaused })
			w.delete("a")
		})
	}
}

// TestNoEgress: a function reaches neither the host's addresses nor its loopback device.
func TestNoEgress(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, nil))
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	ln, err := net.Listen("tcp", ":0")
	must(t, err)
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, addr := range addrs {
		ip := addr.(*net.IPNet).IP
		if ip.To4() == nil {
			continue
		}
		conn, err := net.Dial("tcp", net.JoinHostPort(ip.String(), port))
		must(t, err) // the test's own listener is there
		conn.Close()
		if s := w.ask("a", fmt.Sprintf(`{"do":"dial","text":%q}`, net.JoinHostPort(ip.String(), port))); s.Text == "connected" || s.Text == "" {
			t.Errorf("the function could dial %s: %q", ip, s.Text)
		}
	}
	if s := w.ask("a", `{"do":"dial","text":"127.0.0.1:9001"}`); s.Text != "connected" {
		t.Errorf("the Runtime API: %q", s.Text)
	}
}

// TestRoot: as in AWS, a function can write below /tmp only.
func TestRoot(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractLambda, nil))
	for path, want := range map[string]string{"/bin/x": "read-only file system", "/tmp/x": "<nil>"} {
		if s := w.ask("a", fmt.Sprintf(`{"do":"write","text":%q}`, path)); !strings.Contains(s.Text, want) {
			t.Errorf("write %s: %s", path, s.Text)
		}
	}
}

func TestLambdaSIGTERM(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, func(fn *api.Function) { fn.Env = map[string]string{"SIGTERM": "1"} })
	w.instance("a", fn)
	w.ask("a", `{"do":"echo"}`)
	w.delete("a")
	if !printed(w.logs(fn), "told to end") {
		t.Errorf("no SIGTERM for a function that has registered for it: %v", w.logs(fn))
	}
}

func printed(lines []api.LogLine, text string) bool {
	return slices.ContainsFunc(lines, func(l api.LogLine) bool { return strings.Contains(l.Text, text) })
}
