package registryproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inProcess is an http.RoundTripper that calls a handler, so that whole conversations run on virtual time. What a handler panics
// with breaks the connection, as net/http's server does it.
type inProcess struct{ http.Handler }

func (h inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	pr, pw := io.Pipe()
	w := &pipeWriter{header: http.Header{}, body: pw, ready: make(chan struct{})}
	served := req.Clone(ctx)
	served.RequestURI = req.URL.RequestURI()
	if served.Body == nil {
		served.Body = http.NoBody
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		defer func() {
			if e := recover(); e != nil {
				_ = pw.CloseWithError(io.ErrUnexpectedEOF)
			} else {
				_ = pw.Close()
			}
			w.WriteHeader(http.StatusOK)
		}()
		h.ServeHTTP(w, served)
	}()
	stop := context.AfterFunc(req.Context(), func() { _ = pr.CloseWithError(context.Canceled) })
	select {
	case <-w.ready:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	resp := &http.Response{StatusCode: w.status, Header: w.sent, Body: &pipeBody{pr, cancel, stop, done}, Request: req, ContentLength: -1, ProtoMajor: 1, ProtoMinor: 1}
	if _, err := fmt.Sscan(w.sent.Get("Content-Length"), &resp.ContentLength); err != nil {
		resp.ContentLength = -1
	}
	return resp, nil
}

type pipeWriter struct {
	header, sent http.Header
	body         *io.PipeWriter
	once         sync.Once
	ready        chan struct{}
	status       int
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.ready)
	})
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

type pipeBody struct {
	*io.PipeReader
	cancel context.CancelFunc
	stop   func() bool
	done   chan struct{} // the handler has returned
}

func (b *pipeBody) Close() error {
	b.stop()
	b.cancel()
	err := b.PipeReader.Close()
	<-b.done
	return err
}

// upstreams are registries and mirrors by name. It is what the agent's registry client is to the proxy, in small.
type upstreams struct {
	mu      sync.Mutex
	hosts   map[string]http.Handler
	mirrors map[string][]string
	log     []string // "GET host/v2/..." of all requests
}

func (u *upstreams) Do(ctx context.Context, req registryproxy.Request) (*registryproxy.Response, error) {
	u.mu.Lock()
	hosts := append(slices.Clone(u.mirrors[req.Host]), req.Host)
	u.mu.Unlock()
	err := fmt.Errorf("all gave wrong bytes: %w", blockfmt.ErrCorrupt)
	for _, host := range hosts {
		if slices.Contains(req.Avoid, host) {
			continue
		}
		var resp *registryproxy.Response
		if resp, err = u.doAt(ctx, host, req); err != nil {
			continue
		}
		if resp.Status/100 == 2 || host == req.Host {
			return resp, nil
		}
		_ = resp.Body.Close()
	}
	return nil, err
}

func (u *upstreams) doAt(ctx context.Context, host string, req registryproxy.Request) (*registryproxy.Response, error) {
	path := "/v2/"
	if req.Repo != "" {
		path += req.Repo + "/" + req.Kind + "/" + req.Ref
	}
	u.mu.Lock()
	h := u.hosts[host]
	u.log = append(u.log, strings.TrimSpace(req.Method+" "+host+path+" "+req.Range))
	u.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("%s: no such host: %w", host, blockfmt.ErrTransient)
	}
	hr, err := http.NewRequestWithContext(ctx, req.Method, "http://"+host+path+"?"+req.Query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	hr.Header = http.Header{"Accept": req.Accept}
	if req.Range != "" {
		hr.Header.Set("Range", req.Range)
	}
	if req.Authorization != "" && host == req.Host {
		hr.Header.Set("Authorization", req.Authorization)
	}
	if req.Anonymous {
		hr.Header.Set("Authorization", "Bearer nobody") // the token that everybody gets
	}
	resp, err := inProcess{h}.RoundTrip(hr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s: status %d: %w", host, resp.StatusCode, blockfmt.ErrTransient)
	}
	return &registryproxy.Response{Status: resp.StatusCode, Header: resp.Header, Body: transientBody{resp.Body}, Length: resp.ContentLength, From: host}, nil
}

// transientBody gives errors of the connection their kind.
type transientBody struct{ io.ReadCloser }

func (b transientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	return n, err
}

// count returns how many requests contain text.
func (u *upstreams) count(text string) (n int) {
	for _, line := range u.requests() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (u *upstreams) requests() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.log)
}

// set makes a handler the registry at host.
func (u *upstreams) set(host string, h http.Handler) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hosts[host] = h
}

// disk is a Store and Manifests in a directory.
type disk struct {
	dir string

	mu        sync.Mutex
	full      error // of Create
	broken    error // of WriteAt
	open      int   // files
	kept      int
	manifests map[digest.Digest]registryproxy.Manifest
}

type diskFile struct {
	*os.File
	disk *disk
	d    digest.Digest
}

func (s *disk) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s *disk) Open(d digest.Digest) (*os.File, error) {
	f, err := os.Open(s.path(d))
	if errors.Is(err, os.ErrNotExist) {
		err = blockfmt.ErrNotFound
	}
	return f, err
}

func (s *disk) Create(d digest.Digest, size int64) (registryproxy.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full != nil {
		return nil, s.full
	}
	f, err := os.CreateTemp(s.dir, "draft-")
	if err == nil {
		err = f.Truncate(size)
	}
	s.open++
	return &diskFile{f, s, d}, err
}

func (s *disk) Keep(f registryproxy.File) error {
	file := f.(*diskFile)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept++
	return os.Link(file.Name(), s.path(file.d))
}

// files returns how many are open.
func (s *disk) files() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	err := f.disk.broken
	f.disk.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *diskFile) Close() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.open--
	return errors.Join(f.File.Close(), os.Remove(f.Name()))
}

func (s *disk) Manifest(d digest.Digest) (registryproxy.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.manifests[d]
	if !ok {
		return m, blockfmt.ErrNotFound
	}
	return m, nil
}

func (s *disk) KeepManifest(d digest.Digest, m registryproxy.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifests[d] = m
	return s.full
}

// world is a proxy between clients and registries, all in this process.
type world struct {
	t     *testing.T
	up    *upstreams
	disk  *disk
	blobs *registryproxy.Downloads
	proxy *registryproxy.Proxy
	logs  *logBook
}

// host is the name of the registry that the tests use, as clients give it.
const host = "registry.example"

func newWorld(t *testing.T, change ...func(*registryproxy.Config)) *world {
	t.Helper()
	w := &world{t: t, up: &upstreams{hosts: map[string]http.Handler{}, mirrors: map[string][]string{}}, logs: &logBook{},
		disk: &disk{dir: t.TempDir(), manifests: map[digest.Digest]registryproxy.Manifest{}}}
	log := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.blobs = registryproxy.NewDownloads(registryproxy.Streamed(w.up), w.disk, log)
	cfg := registryproxy.Config{Upstream: w.up, Blobs: w.blobs, Manifests: w.disk, Log: log}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if w.proxy, err = registryproxy.New(cfg); err != nil {
		t.Fatal(err)
	}
	w.up.set(host, memoryRegistry())
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	if err := errors.Join(w.proxy.Close(), w.blobs.Close()); err != nil {
		w.t.Error(err)
	}
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	if w.disk.open != 0 {
		w.t.Errorf("%d files are open at the end", w.disk.open)
	}
}

// memoryRegistry is go-containerregistry's.
func memoryRegistry() http.Handler {
	return ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)), ggcr.WithReferrersSupport(true))
}

// reply is an answer that was read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

// get asks the proxy; headers are "Name: value".
func (w *world) get(path string, headers ...string) reply {
	return w.do(http.MethodGet, path, headers...)
}

func (w *world) do(method, path string, headers ...string) reply {
	w.t.Helper()
	resp := w.start(w.t.Context(), method, path, headers...)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, body, err}
}

// start returns the answer as soon as it begins.
func (w *world) start(ctx context.Context, method, path string, headers ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://proxy"+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Add(k, v)
	}
	resp, err := inProcess{w.proxy}.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// push puts a blob, or with a media type a manifest, into a registry, and returns its digest.
func push(t *testing.T, h http.Handler, repo, name, mediaType string, body []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(body)
	method, path := http.MethodPut, "/v2/"+repo+"/manifests/"+name
	if mediaType == "" {
		method, path = http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String()
	}
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://registry"+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := inProcess{h}.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusCreated:
			return d
		case http.StatusAccepted: // a registry that does not know single-request uploads
			u, err := resp.Location()
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			q.Set("digest", d.String())
			method, path = http.MethodPut, u.Path+"?"+q.Encode()
		default:
			t.Fatalf("push %s: status %d", path, resp.StatusCode)
		}
	}
	t.Fatalf("push %s: not created", path)
	return ""
}

// noise returns n bytes that do not repeat.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0] = byte(seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
