package executor

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Paths of the Runtime API and of the part of the Extensions API that programs use for themselves.
const (
	invocationPath = "/2018-06-01/runtime/invocation/" // next, {id}/response, {id}/error
	initErrorPath  = "/2018-06-01/runtime/init/error"
	registerPath   = "/2020-01-01/extension/register"
	eventPath      = "/2020-01-01/extension/event/next"
)

// serve answers a request of the program.
func (l *lambda) serve(c *runtimeConn, r *http.Request) error {
	method := http.MethodPost
	var serve func(*runtimeConn, *http.Request) error
	path, invocation := strings.CutPrefix(r.URL.Path, invocationPath)
	id, verb, _ := strings.Cut(path, "/")
	switch {
	case invocation && path == "next":
		method, serve = http.MethodGet, l.serveNext
	case invocation && verb == "response":
		serve = func(c *runtimeConn, r *http.Request) error { return l.serveResponse(c, r, id) }
	case invocation && verb == "error":
		serve = func(c *runtimeConn, r *http.Request) error { return l.serveError(c, r, id) }
	case r.URL.Path == initErrorPath:
		serve = l.serveInitError
	case r.URL.Path == registerPath:
		serve = l.serveRegister
	case r.URL.Path == eventPath:
		method, serve = http.MethodGet, l.serveEvents
	default:
		return c.refuse(http.StatusNotFound, "NotFound", "there is no "+r.URL.Path)
	}
	if r.Method != method {
		return c.refuse(http.StatusMethodNotAllowed, "MethodNotAllowed", "want "+method)
	}
	return serve(c, r)
}

// serveNext gives the program its next invocation, as soon as there is one.
func (l *lambda) serveNext(c *runtimeConn, _ *http.Request) error {
	l.mu.Lock()
	open := l.current != nil
	l.mu.Unlock()
	if open {
		return c.refuse(http.StatusForbidden, "InvalidStateTransition", "the invocation before is not answered")
	}
	l.once.Do(func() { close(l.asked) })
	call := l.await(c)
	if call == nil {
		return errLast
	}
	if !c.alive() {
		call.answer <- lambdaAnswer{again: true}
		return errLast
	}
	defer call.payload.free()
	l.mu.Lock()
	l.current = call
	l.mu.Unlock()
	l.describe(c, &call.inv)
	err := c.send(call.payload.bytes)
	if err != nil && l.claim(call.inv.id) != nil {
		call.answer <- lambdaAnswer{err: fail(api.FailureExited, "the program broke off while it took the invocation: %w", err)}
	}
	return err
}

// await returns the next invocation, or nil if the program has gone.
func (l *lambda) await(c *runtimeConn) *lambdaCall {
	look := time.NewTicker(aliveEvery)
	defer look.Stop()
	for {
		select {
		case call := <-l.next:
			return call
		case <-l.ended.Done():
			return nil
		case <-look.C:
			if !c.alive() {
				return nil
			}
		}
	}
}

func (l *lambda) describe(c *runtimeConn, inv *invocation) {
	c.head(http.StatusOK)
	c.field(lambdaRequestID, inv.id)
	c.field(lambdaDeadline, strconv.FormatInt(inv.deadline.UnixMilli(), 10))
	c.field(lambdaARN, l.arn)
	if inv.trace != "" {
		c.field(lambdaTrace, inv.trace)
	}
	if len(inv.clientContext) > 0 {
		c.field(lambdaClientContext, string(inv.clientContext))
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

// refuseClaim answers a request about an invocation that is not the program's.
func (l *lambda) refuseClaim(c *runtimeConn, id string) error {
	l.mu.Lock()
	again := id == l.last
	l.mu.Unlock()
	if again {
		return c.refuse(http.StatusForbidden, "InvalidStateTransition", "the invocation is answered")
	}
	return c.refuse(http.StatusBadRequest, "InvalidRequestID", "the program has no such invocation")
}

func (l *lambda) serveResponse(c *runtimeConn, r *http.Request, id string) error {
	call := l.claim(id)
	if call == nil {
		return l.refuseClaim(c, id)
	}
	a := lambdaAnswer{contentType: r.Header.Get("Content-Type")}
	if r.Header.Get(lambdaResponseMode) == lambdaStreaming {
		a.stream = r
		call.answer <- a
		<-call.over
		return c.accept()
	}
	var err error
	if a.body, err = readBuffer(r.Body, r.ContentLength, api.MaxPayload); err != nil {
		return c.breakOff(call, err)
	}
	if r.Trailer.Get(lambdaErrorType) != "" {
		a.body.bytes = append(a.body.bytes[:0], decodeTrailer(r.Trailer)...)
		a.functionError, a.contentType = unhandled, "application/json"
	}
	call.answer <- a
	return c.accept()
}

// breakOff answers an invocation whose answer cannot be read.
func (c *runtimeConn) breakOff(call *lambdaCall, err error) error {
	if errors.Is(err, errTooLarge) {
		call.answer <- lambdaAnswer{err: fail(api.FailureTooLarge, "the answer has more than %d bytes", api.MaxPayload)}
		return c.refuse(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", api.MaxPayload))
	}
	call.answer <- lambdaAnswer{err: fail(api.FailureExited, "the program broke off in the middle of its answer: %w", err)}
	return errors.Join(err, c.refuse(http.StatusBadRequest, "TruncatedResponse", "the answer is truncated"))
}

func (l *lambda) serveError(c *runtimeConn, r *http.Request, id string) error {
	call := l.claim(id)
	if call == nil {
		return l.refuseClaim(c, id)
	}
	body, err := readBuffer(r.Body, r.ContentLength, api.MaxPayload)
	if err != nil {
		return c.breakOff(call, err)
	}
	a := lambdaAnswer{functionError: unhandled, contentType: "application/json", body: body}
	if r.Header.Get(lambdaErrorType) == handled {
		a.functionError = handled
	}
	call.answer <- a
	return c.accept()
}

// maxInitError bounds what is kept of the error of an initialization, in bytes.
const maxInitError = 16 << 10

func (l *lambda) serveInitError(c *runtimeConn, r *http.Request) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxInitError))
	if err != nil {
		return err
	}
	select {
	case <-l.asked:
		return c.refuse(http.StatusForbidden, "InvalidStateTransition", "the program is initialized")
	default:
	}
	select {
	case l.failed <- fail(api.FailureInit, "the program reported an error of its initialization: %s", text):
	default: // only the first counts
	}
	return c.accept()
}

// serveRegister lets programs that register an extension for the sake of SIGTERM do so. Extensions get no events.
func (l *lambda) serveRegister(c *runtimeConn, _ *http.Request) error {
	l.sigterm.Store(true)
	text, err := json.Marshal(map[string]string{"functionName": l.fn.Name, "functionVersion": strconv.Itoa(l.fn.Version), "handler": ""})
	if err != nil {
		return err
	}
	c.head(http.StatusOK)
	c.field("Lambda-Extension-Identifier", "00000000-0000-0000-0000-000000000001")
	return c.send(text)
}

// serveEvents never answers.
func (l *lambda) serveEvents(c *runtimeConn, _ *http.Request) error {
	look := time.NewTicker(aliveEvery)
	defer look.Stop()
	for c.alive() {
		select {
		case <-look.C:
		case <-l.ended.Done():
			return errLast
		}
	}
	return errLast
}

func (c *runtimeConn) accept() error {
	c.head(http.StatusAccepted)
	return c.send([]byte(`{"status":"OK"}`))
}

func (c *runtimeConn) refuse(status int, kind, message string) error {
	text, err := json.Marshal(map[string]string{"errorType": kind, "errorMessage": message})
	if err != nil {
		return err
	}
	c.head(status)
	return c.send(text)
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
