package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/libp2p/go-yamux/v5"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/api/lane"
)

// Node is an agent that takes work, for as long as its connection lasts. It is safe for concurrent use.
type Node struct {
	Peer    string
	session *yamux.Session
	http    *http.Transport
	lane    *lane.Client // set before the node is known to anybody

	// Guarded by Fleet.mu.
	memory int64
	cpu    int
	zone   string
	images map[digest.Digest]bool
	full   bool
	booked load
}

// maxIdle bounds the streams to a node that wait for the next request.
const maxIdle = 256

func newNode(peer string, conn net.Conn) (*Node, error) {
	session, err := api.OpenWork(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	n := &Node{Peer: peer, session: session, booked: load{functions: map[string]int{}}}
	n.http = &http.Transport{
		MaxIdleConnsPerHost: maxIdle, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return session.OpenStream(ctx) },
	}
	return n, nil
}

// open opens the lane.
func (n *Node) open(ctx context.Context) (err error) {
	late := time.AfterFunc(statusTimeout, n.close)
	defer late.Stop()
	n.lane, err = api.OpenLane(context.WithoutCancel(ctx), n.http) // whose end is that of the session
	return err
}

func (n *Node) close() {
	n.session.Close() //nolint:errcheck // it is over
	n.http.CloseIdleConnections()
}

// A Failure is what a node says when the platform failed, by api's Failure kinds.
type Failure struct{ api.WorkFailure }

func (f *Failure) Error() string { return f.WorkFailure.Error }

// IsKind says whether err is a node's word of that kind.
func IsKind(err error, kind string) bool {
	f, ok := errors.AsType[*Failure](err)
	return ok && f.Kind == kind
}

// maxFailure bounds what is read of a failure, maxAnswer of any other answer in JSON, in bytes.
const (
	maxFailure = 64 << 10
	maxAnswer  = 16 << 20
)

// send sends a request, whose URL has a path only, and returns the answer unless it is a Failure.
func (n *Node) send(req *http.Request) (*http.Response, error) {
	req.URL.Scheme, req.URL.Host = "http", "agent"
	resp, err := n.http.RoundTrip(req)
	if err != nil {
		if ctx := req.Context(); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrLost, n.Peer, err)
	}
	kind := resp.Header.Get(api.HeaderFailure)
	if kind == "" {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxFailure))
	return nil, errors.Join(n.failure(kind, text), err)
}

// failure returns what a node said when the platform failed.
func (n *Node) failure(kind string, text []byte) error {
	f := &Failure{}
	if err := json.Unmarshal(text, &f.WorkFailure); err != nil {
		return fmt.Errorf("node %s says %s, but not what failed: %w: %w", n.Peer, kind, err, ErrLost)
	}
	f.Kind = kind
	return f
}

// call sends a request with a JSON body (unless nil) and decodes the answer (unless nil).
func (n *Node) call(ctx context.Context, method, path string, request, answer any) error {
	var body io.Reader
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return err
	}
	resp, err := n.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body = io.LimitReader(resp.Body, maxAnswer)
	text, err := io.ReadAll(body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("status %d, %.200q", resp.StatusCode, text)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		return fmt.Errorf("node %s to %s %s: %w: %w", n.Peer, method, path, err, ErrLost)
	}
	return nil
}

// ask asks a node how it is, in a scheduler's name.
func (n *Node) ask(ctx context.Context, name string) (s api.NodeStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err = n.call(ctx, http.MethodGet, api.WorkNode+"?scheduler="+url.QueryEscape(name), nil, &s); err == nil && (s.Memory < 0 || s.CPU < 0) {
		err = fmt.Errorf("it has %d bytes and %d thousandths of a core", s.Memory, s.CPU)
	}
	return s, err
}

func instancePath(id string) string { return api.WorkInstances + "/" + url.PathEscape(id) }

// Start starts an instance, and returns when it is ready.
func (n *Node) Start(ctx context.Context, id string, fn api.Function) (i api.Instance, err error) {
	return i, n.call(ctx, http.MethodPut, instancePath(id), api.StartRequest{Function: fn}, &i)
}

// Stop stops an instance. One that is not there any more is no error.
func (n *Node) Stop(ctx context.Context, id string) error {
	err := n.call(ctx, http.MethodDelete, instancePath(id), nil, nil)
	if IsKind(err, api.FailureNoInstance) {
		return nil
	}
	return err
}

// Invoke sends an invocation to an instance: req has its headers and its body. Whatever its status, an answer is
// the function's.
func (n *Node) Invoke(id string, req *http.Request) (*http.Response, error) {
	req.URL = &url.URL{Path: instancePath(id) + "/" + api.WorkInvoke}
	req.Method, req.Host, req.RequestURI = http.MethodPost, "agent", ""
	return n.send(req)
}

// Exchange is Invoke with a payload of at most lane.MaxRequest bytes and an answer that comes as a whole, its trailers in its header.
func (n *Node) Exchange(ctx context.Context, id string, header http.Header, payload []byte) (lane.Answer, error) {
	a, err := n.lane.Do(ctx, instancePath(id)+"/"+api.WorkInvoke, header, payload)
	if errors.Is(err, lane.ErrClosed) {
		return a, fmt.Errorf("%w: %s: %w", ErrLost, n.Peer, err)
	}
	if kind := a.Header.Get(api.HeaderFailure); err == nil && kind != "" {
		return a, n.failure(kind, a.Body)
	}
	return a, err
}

// Resolve asks what an image's reference names, and has the image converted.
func (n *Node) Resolve(ctx context.Context, image string) (a api.ImageAnswer, err error) {
	return a, n.call(ctx, http.MethodPost, api.WorkImages, api.ImageRequest{Image: image}, &a)
}

// Logs returns the newest lines that instances of a function printed on the node, oldest first, as JSON, one a line. version 0 means all.
func (n *Node) Logs(ctx context.Context, namespace, name string, version, limit int) (io.ReadCloser, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if version != 0 {
		query.Set("version", strconv.Itoa(version))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/%s/%s?%s", api.WorkLogs, namespace, name, query.Encode()), nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.send(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
