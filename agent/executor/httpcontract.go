package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	// httpPort is $PORT.
	httpPort = 8080
	// probeEvery is the time between tries to connect to a program that starts.
	probeEvery = 2 * time.Millisecond
	// probeTimeout bounds a connection to a program that has started: its kernel accepts at once unless its queue is full.
	probeTimeout = time.Second
	// hung is how many invocations in a row may run into their deadline before the instance counts as hung.
	hung = 3
	// idleConn is how long an idle connection is kept: less than any server does, or an invocation meets a connection that is just being
	// closed. A new one takes a tenth of a millisecond.
	idleConn = time.Second
	// maxAnswerHeader bounds the header of a program's answer, in bytes.
	maxAnswerHeader = 256 << 10
)

// httpContract is the contract "http" for one instance: a client of the program's server, with connections into its namespace.
type httpContract struct {
	ns        *netns
	transport *http.Transport
	timeouts  atomic.Int32 // in a row
}

func newHTTPContract(ns *netns, concurrency int) *httpContract {
	c := &httpContract{ns: ns}
	c.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return ns.dial(ctx, httpPort) },
		// What the program says passes as it is.
		DisableCompression: true, MaxIdleConnsPerHost: concurrency, MaxResponseHeaderBytes: maxAnswerHeader, IdleConnTimeout: idleConn,
		WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
	}
	return c
}

// ready returns when the program accepts a connection.
func (c *httpContract) ready(ctx context.Context) error {
	for {
		conn, err := c.ns.dial(ctx, httpPort)
		if err == nil {
			return conn.Close()
		}
		wait(ctx, probeEvery)
		if ctx.Err() != nil {
			return fmt.Errorf("it does not listen on port %d, which $PORT says: %w", httpPort, ctx.Err())
		}
	}
}

// healthy says whether the program still takes connections.
func (c *httpContract) healthy(ctx context.Context) error {
	if n := c.timeouts.Load(); n >= hung {
		return fmt.Errorf("%d invocations in a row ran into their deadline", n)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := c.ns.dial(ctx, httpPort)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (c *httpContract) grace(configured time.Duration) time.Duration { return configured }

func (c *httpContract) close() error {
	c.transport.CloseIdleConnections()
	return nil
}

func (c *httpContract) invoke(w http.ResponseWriter, r *http.Request, inv invocation) *failure {
	ctx, cancel := context.WithDeadline(r.Context(), inv.deadline)
	defer cancel()
	if r.ProtoMajor == 1 {
		_ = http.NewResponseController(w).EnableFullDuplex() // a server that cannot reads the request first
	}
	answer, err := c.transport.RoundTrip(c.request(ctx, r, inv))
	if err != nil {
		return c.failure(ctx, inv, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode < http.StatusInternalServerError {
		inv.in.succeeded()
	}
	h := w.Header()
	copyHeader(h, answer.Header)
	for name := range answer.Trailer {
		if !ours(name) {
			h.Add("Trailer", name)
		}
	}
	w.WriteHeader(answer.StatusCode)
	if f := c.copy(ctx, w, answer, inv); f != nil {
		h.Set(http.TrailerPrefix+api.HeaderFailure, f.kind)
	}
	for name, values := range answer.Trailer {
		if !ours(name) {
			h[name] = values
		}
	}
	if inv.tail {
		inv.in.output.settle(ctx)
		h.Set(http.TrailerPrefix+api.HeaderLogTail, inv.tailText())
	}
	return nil
}

// copy passes the body of an answer on: one of unknown length piece by piece.
func (c *httpContract) copy(ctx context.Context, w http.ResponseWriter, answer *http.Response, inv invocation) *failure {
	var err error
	if answer.ContentLength < 0 {
		_ = http.NewResponseController(w).Flush() // the first piece may take long; the copy notices if the caller has gone
		err = copyFlushing(w, answer.Body)
	} else {
		_, err = io.Copy(w, answer.Body)
	}
	if err != nil {
		return c.failure(ctx, inv, err)
	}
	c.timeouts.Store(0)
	return nil
}

// failure explains why there is no answer, or no more of it.
func (c *httpContract) failure(ctx context.Context, inv invocation, err error) *failure {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		c.timeouts.Add(1)
		inv.in.check()
		return timedOut(inv)
	case ctx.Err() != nil:
		return fail(api.FailureTimeout, "the caller has gone: %w", ctx.Err())
	}
	if inv.in.endsSoon(ctx) {
		return inv.in.exitFailure()
	}
	inv.in.check()
	if isNetwork(err) {
		return fail(api.FailureExited, "the program broke off: %w", err)
	}
	return fail(api.FailureProtocol, "the program's answer is no HTTP: %w", err)
}

func isNetwork(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// request is what the program is asked.
func (c *httpContract) request(ctx context.Context, r *http.Request, inv invocation) *http.Request {
	out := (&http.Request{
		Method: inv.method, URL: inv.url, Host: r.Host, Header: make(http.Header, len(r.Header)+4), Body: r.Body, ContentLength: r.ContentLength,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Trailer: r.Trailer,
	}).WithContext(ctx)
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	copyHeader(out.Header, r.Header)
	for _, name := range []string{api.HeaderInvocation, api.HeaderColor} { // of use for the program
		if value := r.Header.Get(name); value != "" {
			out.Header.Set(name, value)
		}
	}
	if out.Header.Get("Forwarded") == "" {
		setForwarded(out.Header, r)
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // or the transport adds its own
	}
	return out
}

// setForwarded says in the Forwarded header (RFC 7239) what is known of the client: what X-Forwarded headers say, or the caller's address.
func setForwarded(h http.Header, r *http.Request) {
	client := h.Get("X-Forwarded-For")
	if client == "" {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			return
		}
		client = host
		h.Set("X-Forwarded-For", client)
	}
	if h.Get("X-Forwarded-Proto") == "" {
		h.Set("X-Forwarded-Proto", "http")
	}
	var parts []string
	for addr := range strings.SplitSeq(client, ",") {
		addr = strings.TrimSpace(addr)
		if strings.Contains(addr, ":") {
			addr = `"[` + addr + `]"`
		}
		parts = append(parts, "for="+addr+";proto="+h.Get("X-Forwarded-Proto"))
	}
	h.Set("Forwarded", strings.Join(parts, ", "))
}

// hopHeaders belong to a connection, not to a message.
var hopHeaders = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// copyHeader copies what passes between the caller and the program.
func copyHeader(to, from http.Header) {
	var named []string // by the Connection header
	for _, list := range from["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			named = append(named, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for name, values := range from {
		if !hopHeaders[name] && !ours(name) {
			to[name] = values
		}
	}
	for _, name := range named {
		delete(to, name)
	}
}

// ours says that a header is between the scheduler and the agent: a program can neither see nor say it.
func ours(name string) bool { return strings.HasPrefix(name, "Xylem-") }

// programURL is where the program is asked.
func programURL(path string) (*url.URL, error) {
	if path == "" {
		path = "/"
	}
	u, err := url.ParseRequestURI(path)
	if err != nil || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%s %.80q: want an absolute path", api.HeaderPath, path)
	}
	u.Scheme, u.Host = "http", "program"
	return u, nil
}
