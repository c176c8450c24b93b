package lane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
)

// maxAtOnce bounds the requests of a connection that are answered at the same time.
const maxAtOnce = 20_000

// server answers the requests of one connection.
type server struct {
	handler http.Handler
	out     *writer
	calls   sync.WaitGroup

	mu     sync.Mutex
	cancel map[uint64]context.CancelFunc
}

// Serve answers requests that come on a connection by h, each as a POST, until ctx ends or the connection does, and closes it. It returns
// when all handlers have. What a handler sets of declared trailers is part of the header.
func Serve(ctx context.Context, conn io.ReadWriteCloser, h http.Handler) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { conn.Close() })() //nolint:errcheck // it is over
	s := &server{handler: h, out: newWriter(conn), cancel: map[uint64]context.CancelFunc{}}
	from := bufio.NewReaderSize(conn, buffered)
	var err error
	for err == nil {
		var f frame
		if f, err = readFrame(from); err == nil {
			err = s.take(ctx, f)
		}
	}
	stop()
	s.calls.Wait()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, ignoreClosed(conn.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

func (s *server) take(ctx context.Context, f frame) error {
	switch f.kind {
	case kindRequest:
		return s.begin(ctx, f)
	case kindCancel:
		s.mu.Lock()
		defer s.mu.Unlock()
		if cancel := s.cancel[f.id]; cancel != nil {
			cancel()
		}
		return nil
	}
	return fmt.Errorf("%w: frame of kind %d", ErrProtocol, f.kind)
}

func (s *server) begin(ctx context.Context, f frame) error {
	path, rest, err := cutString(f.payload)
	if err != nil {
		return err
	}
	header, body, err := cutHeader(rest)
	if err != nil {
		return err
	}
	if len(body) > MaxRequest {
		return fmt.Errorf("%w: request of %d bytes", ErrProtocol, len(body))
	}
	ctx, cancel := context.WithCancel(ctx)
	r := (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: path}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Host: "agent",
	}).WithContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel[f.id] != nil || len(s.cancel) >= maxAtOnce {
		cancel()
		return fmt.Errorf("%w: request %d while %d are answered", ErrProtocol, f.id, len(s.cancel))
	}
	s.cancel[f.id] = cancel
	s.calls.Go(func() { s.answer(r, f.id, cancel) })
	return nil
}

func (s *server) answer(r *http.Request, id uint64, cancel context.CancelFunc) {
	w := &recorder{header: http.Header{}, status: http.StatusOK}
	s.handler.ServeHTTP(w, r)
	s.mu.Lock()
	delete(s.cancel, id)
	s.mu.Unlock()
	gone := r.Context().Err() != nil
	cancel()
	if gone {
		return
	}
	w.send(s.out, id)
}

// recorder is an http.ResponseWriter that keeps the answer.
type recorder struct {
	header http.Header
	status int
	begun  bool
	body   []byte
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if !w.begun && status >= 200 {
		w.begun, w.status = true, status
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.begun = true
	if len(w.body)+len(p) > MaxAnswer {
		return 0, fmt.Errorf("%w: answer of more than %d bytes", ErrTooLarge, MaxAnswer)
	}
	w.body = append(w.body, p...)
	return len(p), nil
}

// Flush implements http.Flusher: an answer comes as a whole.
func (w *recorder) Flush() {}

// EnableFullDuplex makes sense to handlers that stream; here the request is there already.
func (w *recorder) EnableFullDuplex() error { return nil }

// send sends the answer. Large ones go in parts, between which others have their turn.
func (w *recorder) send(out *writer, id uint64) {
	head := appendHeader(binary.BigEndian.AppendUint16(make([]byte, 0, 512), uint16(w.status)), w.header)
	if len(head) > maxHeader {
		head = appendHeader(binary.BigEndian.AppendUint16(nil, http.StatusInternalServerError), nil)
		w.body = []byte("lane: header too large")
	}
	for {
		k, body := kindEnd, w.body
		if len(body) > part {
			k, body = kindPart, body[:part]
		}
		if out.write(k, id, head, body) != nil || k == kindEnd {
			return
		}
		head, w.body = nil, w.body[part:]
	}
}
