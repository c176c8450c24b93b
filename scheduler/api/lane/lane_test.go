package lane_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/api/lane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect returns a client whose requests h answers.
func connect(t testing.TB, h http.HandlerFunc) (*lane.Client, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- lane.Serve(t.Context(), far, h) }()
	c := lane.NewClient(near)
	t.Cleanup(func() {
		c.Close() //nolint:errcheck // the server says what went wrong
		if err := <-served; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
			t.Log(err)
		}
	})
	return c, near
}

func TestManyAtOnce(t *testing.T) {
	c, _ := connect(t, func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header()["Two"] = []string{"a", r.Header.Get("Name")}
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s", r.URL.Path, text)
		w.Header().Set("Trailing", "yes")
	})
	var clients sync.WaitGroup
	for i := range 200 {
		clients.Go(func() {
			name := fmt.Sprint(i)
			a, err := c.Do(t.Context(), "/"+name, http.Header{"Name": {name}}, []byte(strings.Repeat("x", i*300)))
			if err != nil || a.Status != http.StatusTeapot || string(a.Body) != "/"+name+" "+strings.Repeat("x", i*300) {
				t.Errorf("%d: %d, %d bytes, %v", i, a.Status, len(a.Body), err)
			}
			if two := a.Header["Two"]; len(two) != 2 || two[1] != name || a.Header.Get("Trailing") != "yes" {
				t.Errorf("%d: header %v", i, a.Header)
			}
		})
	}
	clients.Wait()
}

func TestLimits(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789"), 600_000)
	c, _ := connect(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/header":
			w.Header().Set("Large", strings.Repeat("x", 200_000))
		case "/more":
			_, err := w.Write(make([]byte, lane.MaxAnswer+1))
			fmt.Fprint(w, errors.Is(err, lane.ErrTooLarge))
		default:
			w.Write(large) //nolint:errcheck // the client sees it
		}
	})
	if a, err := c.Do(t.Context(), "/", nil, nil); err != nil || !bytes.Equal(a.Body, large) {
		t.Errorf("a large answer: %d bytes, %v", len(a.Body), err)
	}
	if a, err := c.Do(t.Context(), "/header", nil, nil); err != nil || a.Status != http.StatusInternalServerError {
		t.Errorf("an answer with too large a header: %d, %v", a.Status, err)
	}
	if a, err := c.Do(t.Context(), "/more", nil, nil); err != nil || string(a.Body) != "true" {
		t.Errorf("an answer that is too large: %.20q, %v", a.Body, err)
	}
	if _, err := c.Do(t.Context(), "/", nil, make([]byte, lane.MaxRequest+1)); !errors.Is(err, lane.ErrTooLarge) {
		t.Errorf("a request that is too large: %v", err)
	}
}

func TestWhoDoesNotWaitCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancelled := make(chan struct{})
		c, _ := connect(t, func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(cancelled)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { _, err := c.Do(ctx, "/", nil, nil); done <- err }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		<-cancelled
		c.Close() //nolint:errcheck // so that the world can end
		synctest.Wait()
	})
}

func TestConnectionBreaks(t *testing.T) {
	c, conn := connect(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	done := make(chan error)
	for range 10 {
		go func() { _, err := c.Do(t.Context(), "/", nil, nil); done <- err }()
	}
	conn.Close() //nolint:errcheck // that is the test
	for range 10 {
		if err := <-done; !errors.Is(err, lane.ErrClosed) {
			t.Error(err)
		}
	}
	if _, err := c.Do(t.Context(), "/", nil, nil); !errors.Is(err, lane.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
}

// readWriter is a connection with a fixed input.
type readWriter struct {
	io.Reader
	io.Writer
}

func (readWriter) Close() error { return nil }

// FuzzServe feeds a server with anything. It must come to an end, whatever it is.
func FuzzServe(f *testing.F) {
	f.Add([]byte{0, 0, 0, 13, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, '/', 0, 'x'})
	f.Add([]byte{0, 0, 0, 9, 2, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{255, 255, 255, 255, 1, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		err := lane.Serve(t.Context(), readWriter{bytes.NewReader(in), io.Discard}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(w, r.Body); err != nil {
				t.Error(err)
			}
		}))
		if err != nil && !errors.Is(err, lane.ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	})
}

// FuzzClient feeds a client with anything.
func FuzzClient(f *testing.F) {
	f.Add([]byte{0, 0, 0, 13, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 200, 0, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := lane.NewClient(readWriter{bytes.NewReader(in), io.Discard})
		if _, err := c.Do(t.Context(), "/", nil, nil); err != nil && !errors.Is(err, lane.ErrClosed) {
			t.Error(err)
		}
		c.Close() //nolint:errcheck // it has ended
	})
}

func BenchmarkDo(b *testing.B) {
	c, _ := connect(b, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }) //nolint:errcheck // the client sees it
	body := make([]byte, 300)
	header := http.Header{"Xylem-Invocation": {"abcdefghijklmnop"}, "Content-Type": {"application/json"}}
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := c.Do(b.Context(), "/v1/instances/x/invoke", header, body); err != nil {
				b.Error(err)
			}
		}
	})
}
