package functions

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/scheduler/api"
)

// asked is what the http program was asked, by its own account.
type asked struct {
	Method, URL, Host, Body string
	Header                  http.Header
}

func (w *world) headers(id, body string, headers ...string) (got asked) {
	w.t.Helper()
	a := w.invoke(id, body, append([]string{api.HeaderPath, "/headers"}, headers...)...)
	if a.status != http.StatusOK {
		w.t.Fatalf("%d %+v %s", a.status, a.failure, a.body)
	}
	must(w.t, json.Unmarshal(a.body, &got))
	return got
}

func TestHTTP(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, nil))
	got := w.headers("a", "hello", api.HeaderPath, "/headers?a=b%20c&d", api.HeaderMethod, "PATCH", "X-Mine", "yes", "X-Forwarded-For", "192.0.2.7",
		"X-Forwarded-Proto", "https", api.HeaderColor, "red", api.HeaderDeadline, "99999999999999")
	if got.Method != "PATCH" || got.URL != "/headers?a=b%20c&d" || got.Body != "hello" || got.Host != w.server.Listener.Addr().String() {
		t.Errorf("the program was asked %+v", got)
	}
	for name, want := range map[string]string{
		"X-Mine": "yes", "X-Forwarded-For": "192.0.2.7", "Forwarded": "for=192.0.2.7;proto=https", api.HeaderColor: "red", api.HeaderInvocation: "inv-a",
		api.HeaderDeadline: "", api.HeaderPath: "", api.HeaderMethod: "",
	} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("header %s: %q, want %q", name, got, want)
		}
	}
	a := w.invoke("a", "", api.HeaderPath, "/status")
	if a.status != http.StatusTeapot || a.failure != nil {
		t.Errorf("a status of the program's own, with a forged header: %d %+v", a.status, a.failure)
	}
	if a := w.invoke("a", "", api.HeaderPath, "elsewhere"); a.status != http.StatusBadRequest {
		t.Errorf("no path: %d", a.status)
	}
}

// TestCloudEvents: events pass in both forms as they are.
func TestCloudEvents(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, nil))
	binary := w.headers("a", `{"x":1}`, "Content-Type", "application/json", "Ce-Specversion", "1.0", "Ce-Type", "com.example.thing", "Ce-Source", "/s", "Ce-Id", "1",
		"Ce-Partitionkey", "k")
	for name, want := range map[string]string{"Content-Type": "application/json", "Ce-Type": "com.example.thing", "Ce-Id": "1", "Ce-Partitionkey": "k"} {
		if got := binary.Header.Get(name); got != want {
			t.Errorf("header %s: %q, want %q", name, got, want)
		}
	}
	event := `{"specversion":"1.0","type":"com.example.thing","source":"/s","id":"1","data":{"x":1}}`
	structured := w.headers("a", event, "Content-Type", "application/cloudevents+json; charset=utf-8")
	if structured.Body != event || structured.Header.Get("Content-Type") != "application/cloudevents+json; charset=utf-8" {
		t.Errorf("structured: %+v", structured)
	}
}

// TestStreamBothWays: every piece comes back before the next one is sent, and a trailer in the end.
func TestStreamBothWays(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, nil))
	pr, pw := io.Pipe()
	req := w.invocation("a", pr, api.HeaderPath, "/echo", api.HeaderTail, "1")
	resp, err := w.server.Client().Do(req)
	must(t, err)
	defer resp.Body.Close()
	total := 0
	for _, piece := range []string{"one", "two", strings.Repeat("3", 100_000)} {
		_, err := pw.Write([]byte(piece))
		must(t, err)
		got := make([]byte, len(piece))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
			t.Fatalf("%d bytes came back as %.20q, %v", len(piece), got, err)
		}
		total += len(piece)
	}
	must(t, pw.Close())
	rest, err := io.ReadAll(resp.Body)
	if err != nil || len(rest) != 0 || resp.Trailer.Get("Echo-Bytes") != "100006" || total != 100_006 {
		t.Errorf("in the end: %q, %v, trailer %v", rest, err, resp.Trailer)
	}
	if _, ok := resp.Trailer[api.HeaderLogTail]; !ok {
		t.Errorf("no log's tail in %v", resp.Trailer)
	}
}

func TestLargeBody(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, nil))
	body := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
	a := w.do(w.invocation("a", bytes.NewReader(body), api.HeaderPath, "/echo"))
	if !bytes.Equal(a.body, body) {
		t.Errorf("%d bytes came back as %d", len(body), len(a.body))
	}
}

// TestTimeoutHTTP: the request is cancelled, and the instance stays.
func TestTimeoutHTTP(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractHTTP, nil)
	w.instance("a", fn)
	w.fails(api.FailureTimeout, "a", "", api.HeaderPath, "/sleep", api.HeaderDeadline, unixMilli(time.Now().Add(300*time.Millisecond)))
	eventually(t, "the program is told", func() bool { return printed(w.logs(fn), "cancelled") })
	if got := w.headers("a", "still there"); got.Body != "still there" {
		t.Errorf("%+v", got)
	}
}

// TestHung: an instance whose invocations all run into their deadline is ended.
func TestHung(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, func(fn *api.Function) { fn.Timeout.Duration = 50 * time.Millisecond }))
	for range 3 {
		w.fails(api.FailureTimeout, "a", "", api.HeaderPath, "/sleep")
	}
	w.gone("a")
}

// TestDeaf: an instance that takes no connections any more is ended, although nobody invokes it.
func TestDeaf(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.HealthEvery = 100 * time.Millisecond })
	fn := w.function(api.ContractHTTP, nil)
	w.instance("a", fn)
	w.invoke("a", "", api.HeaderPath, "/deaf")
	w.gone("a")
	if !printed(w.logs(fn), "deaf") {
		t.Errorf("log: %v", w.logs(fn))
	}
}

func TestHTTPProtocol(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, nil))
	w.fails(api.FailureProtocol, "a", "", api.HeaderPath, "/garbage")
	a := w.invoke("a", "", api.HeaderPath, "/partial")
	if string(a.body) != "half" || a.trailer.Get(api.HeaderFailure) != api.FailureExited {
		t.Errorf("an answer that breaks off: %q %v", a.body, a.trailer)
	}
	f := w.fails(api.FailureExited, "a", "", api.HeaderPath, "/exit")
	if !strings.Contains(f.Error, "exit code 7") || !strings.Contains(f.Log, "leaving") {
		t.Errorf("%+v", f)
	}
}

func TestNeverListens(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractHTTP, func(fn *api.Function) {
		fn.Env, fn.StartTimeout.Duration = map[string]string{"INIT": "never"}, 5*time.Second
	})
	a := w.startInstance("a", fn)
	if a.failure == nil || a.failure.Kind != api.FailureInit || !strings.Contains(a.failure.Error, "port 8080") {
		t.Errorf("%d %+v", a.status, a.failure)
	}
}

func TestConcurrentHTTP(t *testing.T) {
	w := start(t, nil)
	w.instance("a", w.function(api.ContractHTTP, func(fn *api.Function) { fn.Concurrency = 2 }))
	done := make(chan answer, 2)
	for range 2 {
		go func() {
			done <- w.invoke("a", "", api.HeaderPath, "/sleep", api.HeaderDeadline, unixMilli(time.Now().Add(2*time.Second)))
		}()
	}
	eventually(t, "two run", func() bool { return w.node().Instances[0].InFlight == 2 })
	w.fails(api.FailureBusy, "a", "", api.HeaderPath, "/headers")
	for range 2 {
		if a := <-done; a.failure == nil || a.failure.Kind != api.FailureTimeout {
			t.Errorf("%d %+v", a.status, a.failure)
		}
	}
	w.headers("a", "")
}

func TestSIGTERM(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.StopGrace = 3 * time.Second })
	for how, want := range map[string]func(took time.Duration, lines []api.LogLine) bool{
		"print": func(took time.Duration, lines []api.LogLine) bool {
			return took < 3*time.Second && printed(lines, "told to end")
		},
		"ignore": func(took time.Duration, _ []api.LogLine) bool { return took >= 3*time.Second },
	} {
		fn := w.function(api.ContractHTTP, func(fn *api.Function) { fn.Name, fn.Env = "fn-"+how, map[string]string{"SIGTERM": how} })
		w.instance(how, fn)
		begin := time.Now()
		w.delete(how)
		if took := time.Since(begin); !want(took, w.logs(fn)) {
			t.Errorf("%s: gone after %v, log %v", how, took, w.logs(fn))
		}
	}
}

func TestPausedHTTP(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.PauseAfter, cfg.HealthEvery = 50*time.Millisecond, 20*time.Millisecond })
	fn := w.function(api.ContractHTTP, func(fn *api.Function) { fn.Env = map[string]string{"SIGTERM": "print"} })
	w.instance("a", fn)
	for range 2 {
		eventually(t, "it is paused", func() bool { return w.state("a") == api.InstancePaused })
		w.headers("a", "")
	}
	eventually(t, "it is paused", func() bool { return w.state("a") == api.InstancePaused })
	w.delete("a")
	if !printed(w.logs(fn), "told to end") {
		t.Error("a paused instance was not told to end")
	}
}
