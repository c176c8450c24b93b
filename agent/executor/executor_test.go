package executor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// must is for steps that are not what a test is about.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type noImages struct{}

func (noImages) Held() []digest.Digest { return nil }
func (noImages) Resolve(context.Context, string) (api.ImageAnswer, error) {
	return api.ImageAnswer{}, errors.New("no such image")
}

func testConfig(t *testing.T) Config {
	return Config{
		State: t.TempDir(), Resolver: docker.NewResolver(docker.ResolverOptions{}), Images: noImages{}, Memory: 1 << 30, CPU: 4000,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func testFunction(t *testing.T) api.Function {
	spec, err := api.FunctionSpec{Name: "f", Image: "registry.example/f:1", Contract: api.ContractLambda}.Complete()
	must(t, err)
	return api.Function{FunctionSpec: spec, Version: 1, Digest: digest.FromString("f")}
}

// program is the other side of the Runtime API, for programs that do what no library does. Its instance has no process.
type program struct {
	t   *testing.T
	api *lambda
	in  *instance
	url string
	got chan *httptest.ResponseRecorder // answers of invocations
	err chan *failure
}

func newProgram(t *testing.T) *program {
	t.Helper()
	e, err := New(testConfig(t))
	must(t, err)
	in := e.newInstance("a", testFunction(t))
	in.output = &output{}
	p := &program{t: t, api: newLambda(in.ended, in.fn), in: in, got: make(chan *httptest.ResponseRecorder, 1), err: make(chan *failure, 1)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p.url = "http://" + ln.Addr().String() + "/2018-06-01/runtime/"
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.api.server.serve(ln)
	}()
	t.Cleanup(func() {
		in.end()
		must(t, ln.Close())
		<-served
		must(t, p.api.close())
		http.DefaultClient.CloseIdleConnections()
	})
	return p
}

// invoke begins an invocation.
func (p *program) invoke(id, payload string, timeout time.Duration) {
	go func() {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(payload))
		f := p.api.invoke(w, r, invocation{in: p.in, id: id, began: time.Now(), deadline: time.Now().Add(timeout)})
		p.err <- f
		p.got <- w
	}()
}

// call calls the Runtime API. Headers come in pairs.
func (p *program) call(method, path string, body io.Reader, headers ...string) (int, string, http.Header) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, body)
	must(p.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	must(p.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(p.t, err)
	return resp.StatusCode, string(text), resp.Header
}

func TestRuntimeProtocol(t *testing.T) {
	p := newProgram(t)
	p.invoke("one", "payload", time.Minute)
	status, body, h := p.call("GET", "invocation/next", nil)
	if status != 200 || body != "payload" || h.Get(lambdaRequestID) != "one" {
		t.Fatalf("next: %d %q %v", status, body, h)
	}
	for _, c := range []struct {
		method, path string
		status       int
		kind         string
	}{
		{"GET", "invocation/next", 403, "InvalidStateTransition"},
		{"POST", "invocation/two/response", 400, "InvalidRequestID"},
		{"POST", "invocation/two/error", 400, "InvalidRequestID"},
		{"POST", "invocation/one/response", 202, "OK"},
		{"POST", "invocation/one/response", 403, "InvalidStateTransition"},
		{"POST", "invocation/one/error", 403, "InvalidStateTransition"},
		{"POST", "init/error", 403, "InvalidStateTransition"},
		{"GET", "nothing", 404, "NotFound"},
		{"GET", "invocation/one/response", 405, "MethodNotAllowed"},
	} {
		if status, body, _ := p.call(c.method, c.path, strings.NewReader("answer")); status != c.status || !strings.Contains(body, c.kind) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, status, body, c.status, c.kind)
		}
	}
	if f, w := <-p.err, <-p.got; f != nil || w.Body.String() != "answer" {
		t.Errorf("the caller got %v, %q", f, w.Body)
	}
}

func TestLateAnswer(t *testing.T) {
	p := newProgram(t)
	p.invoke("one", "", 50*time.Millisecond)
	p.call("GET", "invocation/next", nil)
	if f := <-p.err; f == nil || f.kind != api.FailureTimeout {
		t.Errorf("the caller got %v", f)
	}
	<-p.got
	if p.in.stopped.Err() == nil {
		t.Error("the instance lives on")
	}
	if status, _, _ := p.call("POST", "invocation/one/response", strings.NewReader("late")); status != 202 {
		t.Errorf("late answer: %d", status)
	}
}

func TestTruncatedAnswer(t *testing.T) {
	p := newProgram(t)
	p.invoke("one", "", time.Minute)
	p.call("GET", "invocation/next", nil)
	conn := p.raw("POST /2018-06-01/runtime/invocation/one/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
	must(t, conn.Close())
	if f := <-p.err; f == nil || f.kind != api.FailureExited {
		t.Errorf("the caller got %v", f)
	}
	<-p.got
}

// raw sends bytes to the Runtime API and returns the connection.
func (p *program) raw(text string) net.Conn {
	p.t.Helper()
	conn, err := net.Dial("tcp", strings.Split(p.url, "/")[2])
	must(p.t, err)
	_, err = io.WriteString(conn, text)
	must(p.t, err)
	return conn
}

// TestProgramThatHungUp: an invocation is not given to a connection that the program has closed.
func TestProgramThatHungUp(t *testing.T) {
	p := newProgram(t)
	conn := p.raw("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
	<-p.api.asked
	must(t, conn.Close())
	p.invoke("one", "payload", time.Minute)
	if status, body, _ := p.call("GET", "invocation/next", nil); status != 200 || body != "payload" {
		t.Errorf("next: %d %q", status, body)
	}
	p.call("POST", "invocation/one/response", strings.NewReader("answer"))
	if f, w := <-p.err, <-p.got; f != nil || w.Body.String() != "answer" {
		t.Errorf("the caller got %v, %q", f, w.Body)
	}
}

// TestStrangeRequests are answered, and do not disturb others.
func TestStrangeRequests(t *testing.T) {
	p := newProgram(t)
	const response = "POST /2018-06-01/runtime/invocation/two/response HTTP/1.1\r\nHost: x\r\n"
	for text, want := range map[string]string{
		"nonsense\r\n\r\n": "HTTP/1.1 400 ",
		"GET /x HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxRequestHeader) + "\r\n\r\n": "HTTP/1.1 431 ",
		response + "Content-Length: 6\r\nExpect: 100-continue\r\n\r\nanswer":                       "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ",
		response + "Connection: close\r\nContent-Length: 6\r\n\r\nanswer":                          "HTTP/1.1 400 ",
		"GET /x HTTP/1.0\r\n\r\n": "HTTP/1.1 404 ",
	} {
		conn := p.raw(text)
		must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Errorf("%.60q: %q, %v, want %q", text, got, err, want)
		}
		must(t, conn.Close())
	}
}

// TestProgramsConnectionsAreBounded: those over the bound are closed, the others serve on.
func TestProgramsConnectionsAreBounded(t *testing.T) {
	p := newProgram(t)
	var held []net.Conn
	for range maxProgramConns {
		conn := p.raw("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err := io.ReadFull(conn, make([]byte, 10))
		must(t, err)
		held = append(held, conn)
	}
	conn := p.raw("")
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more: %d, %v", n, err)
	}
	for _, c := range append(held, conn) {
		must(t, c.Close())
	}
}

func TestHeaderCannotBeSplit(t *testing.T) {
	p := newProgram(t)
	go func() {
		p.err <- p.api.invoke(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), invocation{in: p.in, id: "one", began: time.Now(),
			deadline: time.Now().Add(time.Minute), clientContext: []byte("{}\r\nLambda-Runtime-Trace-Id: forged"), trace: ""})
	}()
	_, _, h := p.call("GET", "invocation/next", nil)
	if h.Get(lambdaTrace) != "" || !strings.HasPrefix(h.Get(lambdaClientContext), "{}  Lambda") {
		t.Errorf("%v", h)
	}
	p.call("POST", "invocation/one/response", nil)
	if f := <-p.err; f != nil {
		t.Error(f)
	}
}

func TestErrorTrailer(t *testing.T) {
	p := newProgram(t)
	p.invoke("one", "", time.Minute)
	p.call("GET", "invocation/next", nil)
	req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"invocation/one/response", io.MultiReader(strings.NewReader("half")))
	must(t, err)
	req.Trailer = http.Header{lambdaErrorType: {"Function.Broke"}, lambdaErrorBody: {"eyJlcnJvclR5cGUiOiJ4In0="}}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	resp.Body.Close()
	if f, w := <-p.err, <-p.got; f != nil || w.Header().Get(api.HeaderFunctionError) != "Unhandled" || w.Body.String() != `{"errorType":"x"}` {
		t.Errorf("the caller got %v, %v %s", f, w.Header(), w.Body)
	}
}

// TestStreamedAnswer: pieces pass as they come.
func TestStreamedAnswer(t *testing.T) {
	p := newProgram(t)
	p.invoke("one", "", time.Minute)
	p.call("GET", "invocation/next", nil)
	status, _, _ := p.call("POST", "invocation/one/response", io.MultiReader(strings.NewReader("one "), strings.NewReader("two")),
		lambdaResponseMode, lambdaStreaming, "Content-Type", "text/x-mine")
	f, w := <-p.err, <-p.got
	if status != 202 || f != nil || w.Body.String() != "one two" || !w.Flushed || w.Header().Get("Content-Type") != "text/x-mine" ||
		w.Header().Get(lambdaResponseMode) != lambdaStreaming {
		t.Errorf("%d %v %v %q", status, f, w.Header(), w.Body)
	}
}

// deafWriter is a caller that has gone.
type deafWriter struct{ *httptest.ResponseRecorder }

func (deafWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestStreamWithoutCaller: the program can post all of its answer.
func TestStreamWithoutCaller(t *testing.T) {
	p := newProgram(t)
	go func() {
		p.err <- p.api.invoke(deafWriter{httptest.NewRecorder()}, httptest.NewRequest("POST", "/", nil), invocation{in: p.in, id: "one", began: time.Now(),
			deadline: time.Now().Add(time.Minute)})
	}()
	p.call("GET", "invocation/next", nil)
	body := strings.NewReader(strings.Repeat("x", 10<<20))
	if status, _, _ := p.call("POST", "invocation/one/response", body, lambdaResponseMode, lambdaStreaming); status != 202 || body.Len() != 0 {
		t.Errorf("%d, %d bytes are left", status, body.Len())
	}
	if f := <-p.err; f != nil {
		t.Error(f)
	}
}

// TestStreamRunsIntoDeadline: the program is killed, and the answer ends with the reason.
func TestStreamRunsIntoDeadline(t *testing.T) {
	p := newProgram(t)
	context.AfterFunc(p.in.stopped, func() { p.api.server.close() }) // as its process's end does
	p.invoke("one", "", 100*time.Millisecond)
	p.call("GET", "invocation/next", nil)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"invocation/one/response", pr)
	must(t, err)
	req.Header.Set(lambdaResponseMode, lambdaStreaming)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	_, err = pw.Write([]byte("half"))
	must(t, err)
	f, w := <-p.err, <-p.got
	if f != nil || w.Body.String() != "half" || w.Header().Get(http.TrailerPrefix+api.HeaderFailure) != api.FailureTimeout {
		t.Errorf("%v %v %q", f, w.Header(), w.Body)
	}
	must(t, pw.Close())
	<-sent
}
