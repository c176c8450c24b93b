package functions

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

func TestLogs(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, nil)
	w.instance("a", fn)
	a := w.invoke("a", `{"do":"log","text":"tell me"}`, api.HeaderInvocation, "inv-7", api.HeaderTail, "1")
	tail, err := base64.StdEncoding.DecodeString(a.trailer.Get(api.HeaderLogTail))
	if err != nil || string(tail) != "tell me\n" {
		t.Errorf("the answer ends with %q, %v", tail, err)
	}
	lines := w.logs(fn)
	if len(lines) != 1 || lines[0].Text != "tell me" || lines[0].Instance != "a" || lines[0].Invocation != "inv-7" || lines[0].Stream != "stdout" {
		t.Errorf("log: %+v", lines)
	}
	w.delete("a")
	if len(w.logs(fn)) != 1 {
		t.Error("the log went with the instance")
	}
}

// TestFloodOfLogs: 1 GB costs neither memory nor much time of the agent, and the end of it can still be seen.
func TestFloodOfLogs(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, func(fn *api.Function) { fn.Timeout.Duration = 5 * time.Minute })
	w.instance("a", fn)
	before := cpuTime(t)
	a := w.invoke("a", `{"do":"log","bytes":1000000000,"text":"the end"}`, api.HeaderTail, "1")
	if a.failure != nil {
		t.Fatalf("%+v", a.failure)
	}
	tail, err := base64.StdEncoding.DecodeString(a.trailer.Get(api.HeaderLogTail))
	if err != nil || len(tail) != 4<<10 || !strings.HasSuffix(string(tail), "the end\n") {
		t.Errorf("the answer ends with %d bytes, %q, %v", len(tail), tail[max(0, len(tail)-20):], err)
	}
	used := cpuTime(t) - before
	t.Logf("1 GB of output took %v of the agent's CPU time", used)
	if used > 8*time.Second {
		t.Errorf("1 GB of output took %v of the agent's CPU time", used)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 64<<20 {
		t.Errorf("the heap holds %d bytes", m.HeapAlloc)
	}
	kept, lost := 0, 0
	for _, line := range w.logs(fn) {
		kept += len(line.Text)
		lost += line.Lost
	}
	if kept > 1<<20 || kept == 0 {
		t.Errorf("%d bytes are kept", kept)
	}
	t.Logf("kept %d bytes, %d lines counted as lost", kept, lost)
}

// cpuTime is what this process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestLogQuery(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, nil)
	w.instance("a", fn)
	for i := range 3 {
		w.invoke("a", fmt.Sprintf(`{"do":"log","text":"line %d"}`, i), api.HeaderTail, "1")
	}
	path := api.WorkLogs + "/" + fn.Namespace + "/" + fn.Name
	for query, want := range map[string]int{"": 3, "?limit=2": 2, "?version=1": 3, "?version=2": 0, "?since=2999-01-02T15:04:05Z": 0} {
		if a := w.do(w.request("GET", path+query, nil)); strings.Count(string(a.body), "\n") != want {
			t.Errorf("%s: want %d lines, got %s", query, want, a.body)
		}
	}
	for _, query := range []string{"?limit=0", "?version=x", "?since=yesterday"} {
		if a := w.do(w.request("GET", path+query, nil)); a.status != 400 {
			t.Errorf("%s: %d", query, a.status)
		}
	}
}
