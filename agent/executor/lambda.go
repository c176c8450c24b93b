package executor

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// MaxPayload is how large a payload of an invocation, or an answer of the contract "lambda" that is not streamed, may be, in bytes.
const MaxPayload = 6 << 20

// Headers of the Runtime API.
const (
	lambdaRequestID     = "Lambda-Runtime-Aws-Request-Id"
	lambdaDeadline      = "Lambda-Runtime-Deadline-Ms"
	lambdaARN           = "Lambda-Runtime-Invoked-Function-Arn"
	lambdaTrace         = "Lambda-Runtime-Trace-Id"
	lambdaClientContext = "Lambda-Runtime-Client-Context"
	lambdaErrorType     = "Lambda-Runtime-Function-Error-Type"
	lambdaErrorBody     = "Lambda-Runtime-Function-Error-Body" // a trailer, base64
	lambdaResponseMode  = "Lambda-Runtime-Function-Response-Mode"
	lambdaStreaming     = "streaming"
)

// What api.HeaderFunctionError says.
const (
	handled   = "Handled"
	unhandled = "Unhandled"
)

// lambda is the contract of that name: a server of the Runtime API for one instance. The program asks it for its next invocation and
// posts the answer, which the caller of invoke waits for.
type lambda struct {
	fn     api.Function
	server *http.Server
	next   chan *lambdaCall // to the program, when it asks
	ended  context.Context  // with the instance

	once    sync.Once
	asked   chan struct{} // closed when the program asks for the first time
	failed  chan *failure // of the initialization
	sigterm atomic.Bool   // an extension wants to be told of the end

	mu      sync.Mutex
	current *lambdaCall // taken by the program and not answered
	last    string      // ID of the one that was answered last
}

// lambdaCall is an invocation on its way through the program.
type lambdaCall struct {
	inv     invocation
	payload *buffer           // the program's handler's, once it was taken
	answer  chan lambdaAnswer // buffered
	over    chan struct{}     // closed when nobody waits for the answer any more
}

// lambdaAnswer is what the program posted.
type lambdaAnswer struct {
	err           *failure
	functionError string
	contentType   string
	body          *buffer       // or
	stream        *http.Request // whose body is the answer; its handler waits for the call to be over
}

func newLambda(ended context.Context, fn api.Function) *lambda {
	l := &lambda{fn: fn, next: make(chan *lambdaCall), ended: ended, asked: make(chan struct{}), failed: make(chan *failure, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", l.serveNext)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", l.serveResponse)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", l.serveError)
	mux.HandleFunc("POST /2018-06-01/runtime/init/error", l.serveInitError)
	mux.HandleFunc("POST /2020-01-01/extension/register", l.serveRegister)
	mux.HandleFunc("GET /2020-01-01/extension/event/next", l.serveEvents)
	l.server = &http.Server{Handler: mux, MaxHeaderBytes: 64 << 10, ReadHeaderTimeout: time.Minute}
	return l
}

// ready returns when the program asks for its first invocation, or says that it cannot.
func (l *lambda) ready(ctx context.Context) error {
	select {
	case <-l.asked:
		return nil
	case f := <-l.failed:
		return f
	case <-ctx.Done():
		return fmt.Errorf("it did not ask for an invocation: %w", ctx.Err())
	}
}

// healthy is true as long as the process lives: whether it answers is seen with the next invocation.
func (l *lambda) healthy(context.Context) error { return nil }

// grace: AWS kills at once unless an extension is registered.
func (l *lambda) grace(time.Duration) time.Duration {
	if l.sigterm.Load() {
		return 500 * time.Millisecond
	}
	return 0
}

func (l *lambda) close() error { return l.server.Close() }

func (l *lambda) invoke(w http.ResponseWriter, r *http.Request, inv invocation) *failure {
	payload, err := readBuffer(r.Body, r.ContentLength, MaxPayload)
	if err != nil {
		return payloadFailure(err)
	}
	call := &lambdaCall{inv: inv, payload: payload, answer: make(chan lambdaAnswer, 1), over: make(chan struct{})}
	defer close(call.over)
	deadline := time.NewTimer(time.Until(inv.deadline))
	defer deadline.Stop()
	select {
	case l.next <- call:
	case <-deadline.C:
		payload.free()
		inv.in.kill("it did not ask for the next invocation before the deadline")
		return timedOut(inv)
	case <-l.ended.Done():
		payload.free()
		return fail(api.FailureNoInstance, "the instance ended before it took the invocation")
	}
	select {
	case a := <-call.answer:
		return l.deliver(w, r.Context(), call, a, deadline.C)
	case <-deadline.C:
		inv.in.kill("its invocation ran into the deadline")
		return timedOut(inv)
	case <-l.ended.Done():
	}
	select { // an answer counts even if the program ended right after it
	case a := <-call.answer:
		return l.deliver(w, r.Context(), call, a, deadline.C)
	default:
		return inv.in.exitFailure()
	}
}

func payloadFailure(err error) *failure {
	if errors.Is(err, errTooLarge) {
		return fail(api.FailureTooLarge, "the payload has more than %d bytes", MaxPayload)
	}
	return fail(api.FailureNoInstance, "read the payload: %w", err)
}

func timedOut(inv invocation) *failure {
	f := fail(api.FailureTimeout, "the deadline passed after %v", time.Since(inv.began).Round(time.Millisecond))
	f.log = inv.in.output.tail.String()
	return f
}

// deliver writes an answer to the caller. After its first byte it can break off only, which a trailer says.
func (l *lambda) deliver(w http.ResponseWriter, ctx context.Context, call *lambdaCall, a lambdaAnswer, deadline <-chan time.Time) *failure {
	if a.err != nil {
		return a.err
	}
	h := w.Header()
	if a.contentType != "" {
		h.Set("Content-Type", a.contentType)
	}
	if a.functionError != "" {
		h.Set(api.HeaderFunctionError, a.functionError)
	} else {
		call.inv.in.succeeded()
	}
	if a.stream != nil {
		h.Set(lambdaResponseMode, lambdaStreaming)
		l.deliverStream(w, call, a.stream, deadline)
		return nil
	}
	defer a.body.free()
	if call.inv.tail {
		call.inv.in.output.settle(ctx)
		h.Set("Trailer", api.HeaderLogTail)
	} else {
		h.Set("Content-Length", strconv.Itoa(len(a.body.bytes)))
	}
	_, _ = w.Write(a.body.bytes) // the caller has gone: the invocation is over all the same
	call.inv.writeTail(h)
	return nil
}

// deliverStream passes an answer on while the program posts it.
func (l *lambda) deliverStream(w http.ResponseWriter, call *lambdaCall, post *http.Request, deadline <-chan time.Time) {
	done := make(chan error, 1)
	go func() { done <- copyFlushing(w, post.Body) }()
	h := w.Header()
	select {
	case err := <-done:
		if post.Trailer.Get(lambdaErrorType) != "" {
			h.Set(http.TrailerPrefix+api.HeaderFunctionError, unhandled)
		} else if err != nil {
			h.Set(http.TrailerPrefix+api.HeaderFailure, api.FailureExited)
		}
	case <-deadline:
		call.inv.in.kill("its invocation ran into the deadline")
		l.breakStream(w, done)
		h.Set(http.TrailerPrefix+api.HeaderFailure, api.FailureTimeout)
	}
	if call.inv.tail {
		call.inv.in.output.settle(post.Context())
		h.Set(http.TrailerPrefix+api.HeaderLogTail, call.inv.tailText())
	}
}

// breakTime is how long the copy of a stream may take to notice that its program was killed.
const breakTime = 5 * time.Second

// breakStream waits for the copy of a stream whose program is being killed. A caller that does not read is cut off.
func (l *lambda) breakStream(w http.ResponseWriter, done <-chan error) {
	t := time.NewTimer(breakTime)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now()) // every server of ours can
		<-done
	}
}

// copyFlushing copies a stream and sends what there is at once.
func copyFlushing(w http.ResponseWriter, r io.Reader) error {
	flush := http.NewResponseController(w)
	buf := streamBuffers.Get().(*[32 << 10]byte)
	defer streamBuffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if err := flush.Flush(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var streamBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// decodeTrailer is the body of an error that came as a trailer.
func decodeTrailer(t http.Header) []byte {
	body, err := base64.StdEncoding.DecodeString(t.Get(lambdaErrorBody))
	if err != nil || len(body) > MaxPayload {
		return []byte(`{"errorType":` + strconv.Quote(t.Get(lambdaErrorType)) + `}`)
	}
	return body
}
