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
	arn    string
	server *runtimeServer
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
	again         bool // none: the connection was closed before the program took the invocation
	err           *failure
	functionError string
	contentType   string
	body          *buffer       // or
	stream        *http.Request // whose body is the answer; its handler waits for the call to be over
}

func newLambda(ended context.Context, fn api.Function) *lambda {
	l := &lambda{fn: fn, arn: fn.ARN(), next: make(chan *lambdaCall), ended: ended, asked: make(chan struct{}), failed: make(chan *failure, 1)}
	l.server = &runtimeServer{handle: l.serve, open: map[*runtimeConn]bool{}}
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

func (l *lambda) close() error {
	l.server.close()
	return nil
}

func (l *lambda) invoke(w http.ResponseWriter, r *http.Request, inv invocation) *failure {
	payload, err := readBuffer(r.Body, r.ContentLength, api.MaxPayload)
	if err != nil {
		return payloadFailure(err)
	}
	call := &lambdaCall{inv: inv, payload: payload, answer: make(chan lambdaAnswer, 1), over: make(chan struct{})}
	defer close(call.over)
	deadline := time.NewTimer(time.Until(inv.deadline))
	defer deadline.Stop()
	for {
		if f := l.offer(call, deadline.C); f != nil {
			payload.free()
			return f
		}
		a, f := l.answer(call, deadline.C)
		switch {
		case f != nil:
			return f
		case !a.again:
			return l.deliver(r.Context(), w, call, a, deadline.C)
		}
	}
}

// offer waits until a connection of the program takes the invocation.
func (l *lambda) offer(call *lambdaCall, deadline <-chan time.Time) *failure {
	select {
	case l.next <- call:
		return nil
	case <-deadline:
		call.inv.in.kill("it did not ask for the next invocation before the deadline")
		return timedOut(call.inv)
	case <-l.ended.Done():
		return fail(api.FailureNoInstance, "the instance ended before it took the invocation")
	}
}

// answer waits for the program's answer, which counts even if the program ended right after it.
func (l *lambda) answer(call *lambdaCall, deadline <-chan time.Time) (lambdaAnswer, *failure) {
	select {
	case a := <-call.answer:
		return a, nil
	case <-deadline:
		call.inv.in.kill("its invocation ran into the deadline")
		return lambdaAnswer{}, timedOut(call.inv)
	case <-l.ended.Done():
	}
	select {
	case a := <-call.answer:
		return a, nil
	default:
		return lambdaAnswer{}, call.inv.in.exitFailure()
	}
}

func payloadFailure(err error) *failure {
	if errors.Is(err, errTooLarge) {
		return fail(api.FailureTooLarge, "the payload has more than %d bytes", api.MaxPayload)
	}
	return fail(api.FailureTimeout, "the caller has gone: %w", err)
}

func timedOut(inv invocation) *failure {
	f := fail(api.FailureTimeout, "the deadline passed after %v", time.Since(inv.began).Round(time.Millisecond))
	f.log = inv.in.output.tail.String()
	return f
}

// deliver writes an answer to the caller. After its first byte it can break off only, which a trailer says.
func (l *lambda) deliver(ctx context.Context, w http.ResponseWriter, call *lambdaCall, a lambdaAnswer, deadline <-chan time.Time) *failure {
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
	go func() {
		err := copyFlushing(w, post.Body)
		if errors.Is(err, errCallerGone) { // the program does not care
			_, err = io.Copy(io.Discard, post.Body)
		}
		done <- err
	}()
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
		call.inv.in.output.settle(context.Background())
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

// errCallerGone says that an answer cannot be written.
var errCallerGone = errors.New("the caller has gone")

// copyFlushing copies a stream and sends what there is at once.
func copyFlushing(w http.ResponseWriter, r io.Reader) error {
	flush := http.NewResponseController(w)
	buf := streamBuffers.Get().(*[32 << 10]byte)
	defer streamBuffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return fmt.Errorf("%w: %w", errCallerGone, err)
			}
			if err := flush.Flush(); err != nil {
				return fmt.Errorf("%w: %w", errCallerGone, err)
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
	if err != nil || len(body) > api.MaxPayload {
		return []byte(`{"errorType":` + strconv.Quote(t.Get(lambdaErrorType)) + `}`)
	}
	return body
}
