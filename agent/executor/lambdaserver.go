package executor

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/xylem-project/xylem/scheduler/api"
)

// serveNext gives the program its next invocation, as soon as there is one.
func (l *lambda) serveNext(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	open := l.current != nil
	l.mu.Unlock()
	if open {
		refuse(w, http.StatusForbidden, "InvalidStateTransition", "the invocation before is not answered")
		return
	}
	l.once.Do(func() { close(l.asked) })
	var call *lambdaCall
	select {
	case call = <-l.next:
	case <-r.Context().Done():
		return
	case <-l.ended.Done():
		return
	}
	defer call.payload.free()
	l.mu.Lock()
	l.current = call
	l.mu.Unlock()
	l.describe(w.Header(), call)
	if _, err := w.Write(call.payload.bytes); err == nil {
		err = http.NewResponseController(w).Flush()
		if err == nil {
			return
		}
	}
	if l.claim(call.inv.id) != nil {
		call.answer <- lambdaAnswer{err: fail(api.FailureExited, "the program broke off while it took the invocation")}
	}
}

func (l *lambda) describe(h http.Header, call *lambdaCall) {
	inv := &call.inv
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(call.payload.bytes))}
	h[lambdaRequestID] = []string{inv.id}
	h[lambdaDeadline] = []string{strconv.FormatInt(inv.deadline.UnixMilli(), 10)}
	h[lambdaARN] = []string{l.fn.ARN()}
	if inv.trace != "" {
		h[lambdaTrace] = []string{inv.trace}
	}
	if len(inv.clientContext) > 0 {
		h[lambdaClientContext] = []string{string(inv.clientContext)}
	}
}

// claim takes the invocation that the program is busy with, for its one answer. It returns nil if it is another one.
func (l *lambda) claim(id string) *lambdaCall {
	l.mu.Lock()
	defer l.mu.Unlock()
	call := l.current
	if call == nil || call.inv.id != id {
		return nil
	}
	l.current, l.last = nil, id
	return call
}

// claimFor is claim for a handler, which it answers if it is another one.
func (l *lambda) claimFor(w http.ResponseWriter, r *http.Request) *lambdaCall {
	id := r.PathValue("id")
	call := l.claim(id)
	if call != nil {
		return call
	}
	l.mu.Lock()
	again := id == l.last
	l.mu.Unlock()
	if again {
		refuse(w, http.StatusForbidden, "InvalidStateTransition", "the invocation is answered")
	} else {
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "the program has no such invocation")
	}
	return nil
}

func (l *lambda) serveResponse(w http.ResponseWriter, r *http.Request) {
	call := l.claimFor(w, r)
	if call == nil {
		return
	}
	a := lambdaAnswer{contentType: r.Header.Get("Content-Type")}
	if r.Header.Get(lambdaResponseMode) == lambdaStreaming {
		a.stream = r
		call.answer <- a
		<-call.over
		accept(w)
		return
	}
	var err error
	if a.body, err = readBuffer(r.Body, r.ContentLength, MaxPayload); err != nil {
		l.breakOff(w, call, err)
		return
	}
	if r.Trailer.Get(lambdaErrorType) != "" {
		a.body.bytes = append(a.body.bytes[:0], decodeTrailer(r.Trailer)...)
		a.functionError, a.contentType = unhandled, "application/json"
	}
	call.answer <- a
	accept(w)
}

// breakOff answers an invocation whose answer cannot be read.
func (l *lambda) breakOff(w http.ResponseWriter, call *lambdaCall, err error) {
	if errors.Is(err, errTooLarge) {
		call.answer <- lambdaAnswer{err: fail(api.FailureTooLarge, "the answer has more than %d bytes", MaxPayload)}
		refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", MaxPayload))
		return
	}
	call.answer <- lambdaAnswer{err: fail(api.FailureExited, "the program broke off in the middle of its answer: %w", err)}
	refuse(w, http.StatusBadRequest, "TruncatedResponse", "the answer is truncated")
}

func (l *lambda) serveError(w http.ResponseWriter, r *http.Request) {
	call := l.claimFor(w, r)
	if call == nil {
		return
	}
	body, err := readBuffer(r.Body, r.ContentLength, MaxPayload)
	if err != nil {
		l.breakOff(w, call, err)
		return
	}
	a := lambdaAnswer{functionError: unhandled, contentType: "application/json", body: body}
	if r.Header.Get(lambdaErrorType) == handled {
		a.functionError = handled
	}
	call.answer <- a
	accept(w)
}

// maxInitError bounds what is kept of the error of an initialization, in bytes.
const maxInitError = 16 << 10

func (l *lambda) serveInitError(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxInitError))
	if err != nil {
		return
	}
	select {
	case <-l.asked:
		refuse(w, http.StatusForbidden, "InvalidStateTransition", "the program is initialized")
		return
	default:
	}
	select {
	case l.failed <- fail(api.FailureInit, "the program reported an error of its initialization: %s", text):
	default: // only the first counts
	}
	accept(w)
}

// serveRegister lets programs that register an extension for the sake of SIGTERM do so. Extensions get no events.
func (l *lambda) serveRegister(w http.ResponseWriter, _ *http.Request) {
	l.sigterm.Store(true)
	w.Header().Set("Lambda-Extension-Identifier", "00000000-0000-0000-0000-000000000001")
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"functionName": l.fn.Name, "functionVersion": strconv.Itoa(l.fn.Version), "handler": ""})
}

func (l *lambda) serveEvents(_ http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-l.ended.Done():
	}
}

func accept(w http.ResponseWriter) {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, `{"status":"OK"}`) // the program has gone: its end is noticed elsewhere
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"errorType": kind, "errorMessage": message})
}

// clientContext decodes what api.HeaderClientContext carries.
func clientContext(encoded string) ([]byte, error) {
	if encoded == "" {
		return nil, nil
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", api.HeaderClientContext, err)
	}
	return text, nil
}
