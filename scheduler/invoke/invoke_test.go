package invoke_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

func TestInvokeAsAWSDoes(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	w.node(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", api.HeaderLogTail)
		if r.Header.Get("Content-Type") == "application/json" && r.Header.Get(api.HeaderDeadline) == "" {
			t.Error("no deadline")
		}
		if r.Header.Get(api.HeaderColor) == "fail" {
			w.Header().Set(api.HeaderFunctionError, "Handled")
		}
		echo(w, r)
		if r.Header.Get(api.HeaderTail) != "" {
			w.Header().Set(api.HeaderLogTail, "bG9n")
		}
	})
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda})
	context := base64.StdEncoding.EncodeToString([]byte(`{"custom":{"xylem-color":"fail"}}`))
	for _, c := range []struct {
		name, path, body string
		header           map[string]string
		status           int
		want             string
		answer           map[string]string
	}{
		{"plain", awsPath("f"), `{"a":1}`, nil, 200, `{"a":1}`, map[string]string{"X-Amz-Executed-Version": "1", "X-Amz-Function-Error": ""}},
		{"empty", awsPath("f"), ``, nil, 200, `{}`, nil},
		{"version", awsPath("f:1"), `1`, nil, 200, `1`, nil},
		{"ARN", awsPath("arn:aws:lambda:eu-west-1:123456789012:function:f:1"), `1`, nil, 200, `1`, nil},
		{"partial ARN", awsPath("123456789012:function:f"), `1`, nil, 200, `1`, nil},
		{"qualifier", awsPath("f") + "?Qualifier=$LATEST", `1`, nil, 200, `1`, nil},
		{"log", awsPath("f"), `1`, map[string]string{"X-Amz-Log-Type": "Tail"}, 200, `1`, map[string]string{"X-Amz-Log-Result": "bG9n"}},
		{"function error", awsPath("f"), `{}`, map[string]string{"X-Amz-Client-Context": context}, 200, `{}`, map[string]string{"X-Amz-Function-Error": "Handled"}},
		{"dry run", awsPath("f"), `{}`, map[string]string{"X-Amz-Invocation-Type": "DryRun"}, 204, ``, nil},
		{"no function", awsPath("g"), `{}`, nil, 404, `no such function`, map[string]string{"X-Amzn-Errortype": "ResourceNotFoundException"}},
		{"no version", awsPath("f:7"), `{}`, nil, 404, `no version or alias`, nil},
		{"two qualifiers", awsPath("f:1") + "?Qualifier=2", `{}`, nil, 400, `Qualifier`, nil},
		{"no JSON", awsPath("f"), `{`, nil, 400, `no JSON`, map[string]string{"X-Amzn-Errortype": "InvalidRequestContentException"}},
		{"too large", awsPath("f"), strings.Repeat(" ", 6<<20+1), nil, 413, `at most`, map[string]string{"X-Amzn-Errortype": "RequestTooLargeException"}},
		{"event too large", awsPath("f"), strings.Repeat(" ", 256<<10+1), map[string]string{"X-Amz-Invocation-Type": "Event"}, 413, `at most`, nil},
		{"no such type", awsPath("f"), `{}`, map[string]string{"X-Amz-Invocation-Type": "Later"}, 400, `RequestResponse, Event or DryRun`, nil},
		{"no name", awsPath("a:b:c"), `{}`, nil, 400, `want a name`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, header := w.do(http.MethodPost, c.path, c.body, c.header)
			if status != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%d %.200s, want %d with %s", status, body, c.status, c.want)
			}
			for name, want := range c.answer {
				if got := header.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

// One instance serves invocations that come one after the other; those that come at once get one each.
func TestAsManyInstancesAsNeeded(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	var together sync.WaitGroup
	var all atomic.Bool
	n := w.node(func(rw http.ResponseWriter, r *http.Request) {
		if all.Load() {
			together.Done()
			together.Wait()
		}
		echo(rw, r)
	})
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda, Max: 5})
	for range 10 {
		if status, body, _ := w.do(http.MethodPost, awsPath("f"), `1`, nil); status != 200 {
			t.Fatal(status, body)
		}
	}
	if n.count() != 1 {
		t.Errorf("%d instances for one invocation at a time", n.count())
	}
	all.Store(true)
	together.Add(5)
	var clients sync.WaitGroup
	for range 5 {
		clients.Go(func() {
			if status, body, _ := w.do(http.MethodPost, awsPath("f"), `1`, nil); status != 200 {
				t.Error(status, body)
			}
		})
	}
	clients.Wait()
	if n.count() != 5 {
		t.Errorf("%d instances for five invocations at once", n.count())
	}
}

func TestOverloadIsRefused(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	release, running := make(chan struct{}), make(chan struct{}, 200)
	w.node(func(rw http.ResponseWriter, r *http.Request) { running <- struct{}{}; <-release; echo(rw, r) })
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda, Max: 1})
	var clients sync.WaitGroup
	var served, refused atomic.Int64
	for i := range 150 { // one runs, a hundred wait
		if i == 1 {
			<-running
		}
		clients.Go(func() {
			switch status, body, header := w.do(http.MethodPost, awsPath("f"), `1`, nil); {
			case status == 200:
				served.Add(1)
			case status == 429 && header.Get("Retry-After") != "" && header.Get("X-Amzn-Errortype") == "TooManyRequestsException":
				refused.Add(1)
			default:
				t.Error(status, body)
			}
		})
	}
	w.until("the rest is refused", func() bool { return refused.Load() >= 49 })
	close(release)
	clients.Wait()
	if served.Load() != 101 || refused.Load() != 49 {
		t.Errorf("%d served, %d refused", served.Load(), refused.Load())
	}
}

// What has not begun is sent elsewhere; what was interrupted only if the function says that it may run twice.
func TestInstancesThatDie(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	var n *node
	var calls atomic.Int64
	n = w.node(func(rw http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 2 {
			n.kill(rw.Header().Get("Instance"))
			fail(rw, api.FailureExited, "exit status 137")
			return
		}
		echo(rw, r)
	})
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractHTTP, Concurrency: 1})
	w.create(api.FunctionSpec{Name: "again", Contract: api.ContractHTTP, Concurrency: 1, Idempotent: true})
	invoke := func(name string) (int, string) {
		status, body, _ := w.do(http.MethodPost, awsPath(name), `1`, nil)
		return status, body
	}
	if status, body := invoke("f"); status != 200 {
		t.Fatal(status, body)
	}
	if status, body := invoke("f"); status != 200 || !strings.Contains(body, "Runtime.ExitError") {
		t.Errorf("an invocation whose instance died: %d %s", status, body)
	}
	if status, body := invoke("f"); status != 200 || body != "1" {
		t.Errorf("the next: %d %s", status, body)
	}
	calls.Store(1)
	if status, body := invoke("again"); status != 200 || body != "1" {
		t.Errorf("an idempotent invocation whose instance died: %d %s", status, body)
	}
	for _, i := range w.dispatcher.Instances("default") {
		n.kill(i.ID) // and nobody is told
	}
	if status, body := invoke("f"); status != 200 || body != "1" {
		t.Errorf("an instance that is not there any more: %d %s", status, body)
	}
}

func TestStartsThatFail(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	n := w.node(echo)
	n.start = func(api.Function) *api.WorkFailure {
		return &api.WorkFailure{Kind: api.FailureInit, Error: "exit status 1: no such module"}
	}
	w.create(api.FunctionSpec{Name: "f"})
	for range 20 {
		status, body, header := w.do(http.MethodPost, "/v1/functions/f/invocations", ``, nil)
		if status != http.StatusBadGateway || !strings.Contains(body, "no such module") || header.Get("Retry-After") == "" {
			t.Fatal(status, body)
		}
	}
	if got := n.starts.Load(); got > 2 {
		t.Errorf("%d starts in a moment, want a pause after the first", got)
	}
}

func TestNoNodeAndNoRoom(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	w.create(api.FunctionSpec{Name: "f", Memory: 2 << 30})
	start := time.Now()
	if status, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations", ``, nil); status != http.StatusServiceUnavailable || !strings.Contains(body, "no agent takes work") {
		t.Errorf("without nodes: %d %s", status, body)
	}
	if took := time.Since(start); took < 4*time.Second {
		t.Errorf("refused after %v, before agents had time to connect", took)
	}
	w.node(echo)
	if status, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations", ``, nil); status != http.StatusTooManyRequests || !strings.Contains(body, "no node has room") {
		t.Errorf("without room: %d %s", status, body)
	}
}

// An idle instance makes room for another function's, but one that is always to be there does not.
func TestIdleInstancesMakeRoom(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	n := w.node(echo) // with room for 1 GiB
	w.create(api.FunctionSpec{Name: "kept", Memory: 300 << 20, Min: 1})
	w.create(api.FunctionSpec{Name: "f", Memory: 600 << 20})
	w.create(api.FunctionSpec{Name: "g", Memory: 600 << 20})
	w.create(api.FunctionSpec{Name: "large", Memory: 2 << 30})
	w.until("the kept one is there", func() bool { return n.count() == 1 })
	for _, name := range []string{"f", "g", "f", "kept"} {
		if status, body, _ := w.do(http.MethodPost, awsPath(name), `1`, nil); status != 200 {
			t.Fatal(name, status, body)
		}
	}
	if status, body, _ := w.do(http.MethodPost, awsPath("large"), `1`, nil); status != http.StatusTooManyRequests {
		t.Errorf("one that fits no node: %d %s", status, body)
	}
	if starts := n.starts.Load(); starts != 4 || n.count() != 2 {
		t.Errorf("%d starts and %d instances, want kept, f, g and f again, of which the first and the last are left", starts, n.count())
	}
}

// A scheduler that starts again takes up the instances of its former run.
func TestSchedulerStartsAgain(t *testing.T) {
	kept := store.NewMemory()
	w := newWorld(t, kept)
	n := w.node(echo)
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda})
	if status, body, _ := w.do(http.MethodPost, awsPath("f"), `1`, nil); status != 200 {
		t.Fatal(status, body)
	}
	w.stop()
	again := newWorld(t, kept)
	again.connect(n)
	again.known("f")
	if status, body, _ := again.do(http.MethodPost, awsPath("f"), `1`, nil); status != 200 {
		t.Fatal(status, body)
	}
	if n.starts.Load() != 1 {
		t.Errorf("%d starts, want that of the former run only", n.starts.Load())
	}
}

// What was accepted is run, by the next scheduler if need be, and tried again if it fails.
func TestEvents(t *testing.T) {
	kept := store.NewMemory()
	w := newWorld(t, kept)
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda})
	for range 10 { // there is no node
		if status, body, _ := w.do(http.MethodPost, awsPath("f"), `"event"`, map[string]string{"X-Amz-Invocation-Type": "Event"}); status != http.StatusAccepted {
			t.Fatal(status, body)
		}
		if status, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations?async=true", `"event"`, nil); status != http.StatusAccepted {
			t.Fatal(status, body)
		}
	}
	if status, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations?async=true", strings.Repeat("x", 300<<10), nil); status != http.StatusRequestEntityTooLarge {
		t.Error(status, body)
	}
	w.stop()
	again := newWorld(t, kept)
	var ran, failed sync.Map
	again.node(func(rw http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(api.HeaderInvocation)
		if _, before := failed.LoadOrStore(id, true); !before {
			rw.Header().Set(api.HeaderFunctionError, "Unhandled")
			return
		}
		ran.Store(id, true)
		echo(rw, r)
	})
	again.until("all have run", func() bool {
		n := 0
		ran.Range(func(any, any) bool { n++; return true })
		return n == 20
	})
	again.until("nothing is left in the store", func() bool { return again.waiting() == 0 })
}

func TestDeadLetters(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	letters := make(chan string, 10)
	w.node(func(rw http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if strings.Contains(string(text), "requestContext") {
			letters <- string(text)
		}
		rw.Header().Set(api.HeaderFunctionError, "Unhandled")
		rw.Write([]byte(`{"errorMessage":"bad"}`)) //nolint:errcheck // the test is over
	})
	w.create(api.FunctionSpec{Name: "dead", Contract: api.ContractLambda, Retries: -1, DeadLetter: "f"})
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda, Retries: -1, DeadLetter: "dead"})
	if status, body, _ := w.do(http.MethodPost, awsPath("f"), `{"order":7}`, map[string]string{"X-Amz-Invocation-Type": "Event"}); status != http.StatusAccepted {
		t.Fatal(status, body)
	}
	if got := <-letters; !strings.Contains(got, `"requestPayload":{"order":7}`) || !strings.Contains(got, "bad") {
		t.Errorf("dead letter: %s", got)
	}
	w.until("nothing is left in the store", func() bool { return w.waiting() == 0 })
	if len(letters) != 0 {
		t.Error("a dead letter that failed was sent on")
	}
}

// Invocations of a colour go to one instance while it has time for them.
func TestColours(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	w.node(func(rw http.ResponseWriter, r *http.Request) { rw.Write([]byte(rw.Header().Get("Instance"))) }) //nolint:errcheck // the test is over
	w.create(api.FunctionSpec{Name: "f", Min: 4, Max: 4, Concurrency: 2})
	w.until("there are four instances", func() bool { return len(w.dispatcher.Instances("default")) == 4 })
	for _, header := range []map[string]string{
		{"X-Xylem-Color": "blue"}, {"Ce-Partitionkey": "green", "Ce-Id": "1"}, {"Content-Type": "application/cloudevents+json"},
	} {
		seen := map[string]bool{}
		for range 20 {
			status, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations", `{"partitionkey":"red"}`, header)
			if status != 200 {
				t.Fatal(status, body)
			}
			seen[body] = true
		}
		if len(seen) != 1 {
			t.Errorf("%v went to %d instances", header, len(seen))
		}
	}
}

// When an instance goes, those that get its colours are told of them.
func TestMovedColoursAreHandedOver(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	var told sync.Map
	n := w.node(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get(api.HeaderPath) == "/warm" {
			text, _ := io.ReadAll(r.Body)
			var warming api.Warming
			if err := json.Unmarshal(text, &warming); err != nil {
				t.Error(err)
			}
			for _, c := range warming.Colors {
				told.Store(c, rw.Header().Get("Instance"))
			}
		}
		rw.Write([]byte(rw.Header().Get("Instance"))) //nolint:errcheck // the test is over
	})
	w.create(api.FunctionSpec{Name: "f", Min: 3, Max: 3, Warm: "/warm", Placement: "least-assigned"})
	w.until("there are three instances", func() bool { return len(w.dispatcher.Instances("default")) == 3 })
	where := func(colour string) string {
		_, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations", "", map[string]string{"X-Xylem-Color": colour})
		return body
	}
	victim := where("blue")
	n.kill(victim)
	w.until("blue has moved", func() bool { return where("blue") != victim })
	w.until("its new instance was told of it", func() bool { at, ok := told.Load("blue"); return ok && at != victim })
}

func TestScaleToZeroAndDelete(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	n := w.node(echo)
	w.create(api.FunctionSpec{Name: "f", Keep: api.Duration{Duration: time.Second}})
	w.create(api.FunctionSpec{Name: "g", Min: 2})
	if status, body, _ := w.do(http.MethodPost, awsPath("f"), `1`, nil); status != 200 {
		t.Fatal(status, body)
	}
	w.until("f has gone, and g is ready", func() bool {
		list := w.dispatcher.Instances("default")
		return len(list) == 2 && list[0].Function == "g" && n.count() == 2
	})
	if status, body, _ := w.do(http.MethodDelete, "/v1/functions/g", ``, nil); status != 200 {
		t.Fatal(status, body)
	}
	w.until("g has gone", func() bool { return n.count() == 0 })
}

// An answer that breaks off is not taken for whole.
func TestStreams(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	w.node(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", api.HeaderFailure)
		rw.Header().Set("X-Path", r.Header.Get(api.HeaderMethod)+" "+r.Header.Get(api.HeaderPath)+" "+r.Header.Get("X-Xylem-Secret")+r.Header.Get("Authorization"))
		rw.WriteHeader(http.StatusTeapot)
		echo(rw, r)
		if r.Header.Get("Break") != "" {
			rw.Header().Set(api.HeaderFailure, api.FailureExited)
		}
	})
	w.create(api.FunctionSpec{Name: "f"})
	large := strings.Repeat("x", 4<<20)
	status, body, header := w.do(http.MethodPut, "/v1/functions/f/web/a%2Fb/c?d=e", large, map[string]string{"Authorization": "Bearer t", "X-Xylem-Secret": "s"})
	if status != http.StatusTeapot || body != large || header.Get("X-Path") != "PUT /a%2Fb/c?d=e" {
		t.Errorf("%d, %d bytes, %q", status, len(body), header.Get("X-Path"))
	}
	if _, body, _ := w.do(http.MethodPost, "/v1/functions/f/invocations", large, map[string]string{"Break": "1"}); !strings.Contains(body, "EOF") {
		t.Errorf("an answer that broke off has %d bytes and no error", len(body))
	}
}

// A client that goes away in the middle of both streams frees the instance's place.
func TestClientsThatGoAway(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	w.node(func(rw http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(rw)
		if err := control.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		rw.Write([]byte("hello"))   //nolint:errcheck // the client sees it
		control.Flush()             //nolint:errcheck // as above
		io.Copy(io.Discard, r.Body) //nolint:errcheck // it breaks off
	})
	w.create(api.FunctionSpec{Name: "f", Max: 1, Concurrency: 1})
	for range 3 {
		body, more := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.api.URL+"/v1/functions/f/invocations", body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.api.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		begin := make([]byte, 5)
		if _, err := io.ReadFull(resp.Body, begin); err != nil || string(begin) != "hello" {
			t.Fatalf("%s: %q, %v", resp.Status, begin, err)
		}
		resp.Body.Close()
		w.until("the place is free", func() bool {
			list := w.dispatcher.Instances("default")
			return len(list) == 1 && list[0].InFlight == 0
		})
		more.Close()
	}
}

func TestFunctionsThatCannotBe(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	for body, want := range map[string]string{
		`{"name":"f","image":"r/a","memry":1}`:               "unknown field",
		`{"name":"f","image":"r/a","memory":1}`:              "memory",
		`{"name":"f","image":"r/a"} {}`:                      "more than one",
		`{"name":"f","image":"r/a","namespace":"b"}`:         "namespace",
		`{"name":"f","image":"r/a","timeout":"soon"}`:        "duration",
		`{"name":"f","image":"r/a","placement":"astrology"}`: "placement",
		`{"name":"f","image":"r/a","contract":"cgi"}`:        "contract",
		`[]`:                         "body",
		strings.Repeat(" ", 2<<20):   "body",
		`{"name":"../f","image":""}`: "function name",
	} {
		if status, text, _ := w.do(http.MethodPost, "/v1/functions", body, nil); status != 400 && status != 413 || !strings.Contains(text, want) {
			t.Errorf("%.60s: %d %s, want %q", body, status, text, want)
		}
	}
}
