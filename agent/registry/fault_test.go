package registry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

var content = bytes.Repeat([]byte("what the registry has. "), 20_000)

// calls are the ways to read content, as one that returns what it got.
var calls = map[string]func(ctx context.Context, r *registry.Repository) ([]byte, error){
	"Manifest": func(ctx context.Context, r *registry.Repository) ([]byte, error) {
		b, _, err := r.Manifest(ctx, digest.FromBytes(content))
		return b, err
	},
	"Blob": func(ctx context.Context, r *registry.Repository) ([]byte, error) {
		return r.Blob(ctx, describe(content), 1<<20)
	},
	"Range": func(ctx context.Context, r *registry.Repository) ([]byte, error) {
		body, err := r.Range(ctx, digest.FromBytes(content), 0, int64(len(content)))
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return io.ReadAll(body)
	},
}

// partial answers a request for content, from an offset to the end or for the whole, with the bytes of body there.
func partial(w http.ResponseWriter, req *http.Request, body []byte) {
	off := offset(req)
	if req.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(body[min(off, len(body)):])
}

// offset returns where the range starts that a request asks for.
func offset(req *http.Request) (off int) {
	_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &off) // else 0
	return off
}

// TestFaults: each fault of a registry ends in the right bytes or an error of the right kind, soon.
func TestFaults(t *testing.T) {
	flipped := bytes.Clone(content)
	flipped[12345] ^= 1
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, test := range map[string]struct {
		serve    http.HandlerFunc
		want     error
		attempts int  // of a Manifest call
		whole    bool // only whole reads can tell
	}{
		"sound":       {func(w http.ResponseWriter, r *http.Request) { partial(w, r, content) }, nil, 1, false},
		"wrong bytes": {func(w http.ResponseWriter, r *http.Request) { partial(w, r, flipped) }, blockfmt.ErrCorrupt, 1, true},
		"too short":   {func(w http.ResponseWriter, r *http.Request) { partial(w, r, content[:1000]) }, blockfmt.ErrCorrupt, 1, true},
		"too long": {func(w http.ResponseWriter, r *http.Request) {
			partial(w, r, append(content[:len(content):len(content)], 1))
		}, blockfmt.ErrCorrupt, 1, true},
		"nothing": {func(w http.ResponseWriter, r *http.Request) { partial(w, r, nil) }, blockfmt.ErrCorrupt, 1, true},
		"gzip that nobody asked for": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			partial(w, r, gzipped(content))
		}, blockfmt.ErrCorrupt, 1, true},
		"not found":             {status(404), blockfmt.ErrNotFound, 1, false},
		"unauthorized":          {status(401), blockfmt.ErrDenied, 1, false},
		"forbidden":             {status(403), blockfmt.ErrDenied, 1, false},
		"too many requests":     {status(429), blockfmt.ErrTransient, 3, false},
		"internal error":        {status(500), blockfmt.ErrTransient, 3, false},
		"bad gateway":           {status(502), blockfmt.ErrTransient, 3, false},
		"method not allowed":    {status(405), blockfmt.ErrUnsupported, 1, false},
		"range not satisfiable": {status(416), blockfmt.ErrCorrupt, 1, false},
		"no content":            {status(204), blockfmt.ErrCorrupt, 1, true},
		"no answer":             {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, blockfmt.ErrTransient, 3, false},
		"connection closed":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, blockfmt.ErrTransient, 3, false},
		"stalls in the body":    {stall(len(content) / 2), blockfmt.ErrTransient, 3, false},
		"closes in the body":    {abort, blockfmt.ErrTransient, 3, false},
		"redirects without end": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusTemporaryRedirect)
		}, blockfmt.ErrUnsupported, 1, false},
		"redirects to nowhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, blockfmt.ErrTransient, 3, false},
		"redirects to a file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusTemporaryRedirect)
		}, blockfmt.ErrTransient, 3, false},
		"answers with other HTTP": {func(w http.ResponseWriter, _ *http.Request) { hijack(w, "SSH-2.0-nonsense\r\n\r\n") }, blockfmt.ErrTransient, 3, false},
	} {
		for call, read := range calls {
			t.Run(name+"/"+call, func(t *testing.T) {
				t.Parallel()
				var requests atomic.Int32
				host := serve(t, func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					test.serve(w, r)
				})
				c, logs := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 3 })
				start := time.Now()
				got, err := read(t.Context(), repository(t, c, host))
				if test.whole && call == "Range" { // its reader verifies
					if err == nil && int64(len(got)) != int64(len(content)) {
						t.Errorf("%d bytes without an error, want %d", len(got), len(content))
					}
					return
				}
				if !errors.Is(err, test.want) || (err == nil && !bytes.Equal(got, content)) {
					t.Errorf("%d bytes, %v; want %v", len(got), err, test.want)
				}
				if d := time.Since(start); d > 10*time.Second {
					t.Errorf("took %v", d)
				}
				if n := int(requests.Load()); call == "Manifest" && n != test.attempts && !strings.HasPrefix(name, "redirects without") {
					t.Errorf("%d requests, want %d", n, test.attempts)
				}
				if n := logs.count("backing off"); n > 1 || (n == 0 && call == "Manifest" && test.attempts > 1) {
					t.Errorf("%d log lines", n)
				}
			})
		}
	}
}

func stall(after int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-offset(r)))
		partial(w, r, content[:after])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func abort(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-offset(r)))
	partial(w, r, content[:1000])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func hijack(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.Close()
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b) // to memory
	_ = w.Close()
	return out.Bytes()
}

// TestBlobResumes: a blob whose connection breaks again and again is taken up where it was.
func TestBlobResumes(t *testing.T) {
	var ranges []string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		off := offset(r)
		if off > 0 {
			ranges = append(ranges, r.Header.Get("Range"))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-off))
		partial(w, r, content[:min(off+100_000, len(content))])
		_ = http.NewResponseController(w).Flush()
		if off+100_000 < len(content) {
			panic(http.ErrAbortHandler)
		}
	})
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.Attempts = 2 })
	got, err := repository(t, c, host).Blob(t.Context(), describe(content), 1<<20)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if len(ranges) != 4 {
		t.Errorf("ranges %v, want 4", ranges)
	}
}

// TestWriterFails: an error of the writer is the caller's, and is not tried again.
func TestWriterFails(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) { partial(w, r, content) })
	c, _ := newClient(t, nil)
	full := errors.New("disk full")
	err := repository(t, c, host).WriteBlob(t.Context(), describe(content), writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) || errors.Is(err, blockfmt.ErrTransient) {
		t.Errorf("error %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestHugeManifest: of a manifest of 1 GB the announcement is enough; of one without announcement the limit is read.
func TestHugeManifest(t *testing.T) {
	for _, announced := range []bool{true, false} {
		t.Run(fmt.Sprint(announced), func(t *testing.T) {
			var sent atomic.Int64
			host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if announced {
					w.Header().Set("Content-Length", strconv.Itoa(1<<30))
				}
				chunk := make([]byte, 1<<20)
				for range 1 << 10 {
					n, err := w.Write(chunk)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
			c, _ := newClient(t, nil)
			r := repository(t, c, host)
			if _, _, err := r.Manifest(t.Context(), digest.FromString("x")); !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("Manifest: %v", err)
			}
			if n := sent.Load(); n > 64<<20 {
				t.Errorf("%d bytes were read", n)
			}
			if _, err := r.Referrers(t.Context(), digest.FromString("x"), ""); !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("Referrers: %v", err)
			}
		})
	}
}

func TestRangeAnswers(t *testing.T) {
	blob := content
	for name, test := range map[string]struct {
		off, n int64
		serve  http.HandlerFunc
		want   error
	}{
		"whole blob, near":   {1000, 50, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) }, nil},
		"whole blob, far":    {64 << 20, 50, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) }, blockfmt.ErrUnsupported},
		"whole blob, short":  {int64(len(blob)) + 5, 50, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) }, blockfmt.ErrCorrupt},
		"other range":        {1000, 50, contentRange("bytes 0-49/100000"), blockfmt.ErrCorrupt},
		"longer range":       {1000, 50, contentRange("bytes 1000-2000/100000"), blockfmt.ErrCorrupt},
		"no Content-Range":   {1000, 50, contentRange(""), blockfmt.ErrCorrupt},
		"size not known":     {1000, 50, contentRange("bytes 1000-1049/*"), nil},
		"absurd range":       {1000, 50, contentRange("bytes 18446744073709551615-3/1"), blockfmt.ErrCorrupt},
		"multipart":          {1000, 50, contentRange("multipart/byteranges"), blockfmt.ErrCorrupt},
		"nothing asked":      {1000, 0, contentRange(""), blockfmt.ErrCorrupt},
		"negative":           {-1, 50, contentRange(""), blockfmt.ErrCorrupt},
		"whole from nothing": {0, 50, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newClient(t, nil)
			body, err := repository(t, c, serve(t, test.serve)).Range(t.Context(), digest.FromBytes(blob), test.off, test.n)
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[test.off:test.off+test.n]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func contentRange(value string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if value != "" {
			w.Header().Set("Content-Range", value)
		}
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content[1000:1050])
	}
}

// TestCanceled: the caller's end shows as such, during the call and while the body is read.
func TestCanceled(t *testing.T) {
	host := serve(t, stall(1000))
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.StallTimeout = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	body, err := repository(t, c, host).Range(ctx, digest.FromBytes(content), 0, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(body); !errors.Is(err, context.Canceled) {
		t.Errorf("read of the body: %v", err)
	}
	if _, _, err := repository(t, c, host).Manifest(ctx, digest.FromBytes(content)); !errors.Is(err, context.Canceled) {
		t.Errorf("call: %v", err)
	}
}

// TestConnectionsAreReused: a cold start is a handful of round trips, and none of them should be for connections.
func TestConnectionsAreReused(t *testing.T) {
	var remotes = map[string]bool{}
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		remotes[r.RemoteAddr] = true
		if strings.Contains(r.URL.Path, "absent") {
			w.WriteHeader(404)
			return
		}
		partial(w, r, content)
	})
	c, _ := newClient(t, nil)
	for range 5 {
		for name, read := range calls {
			if _, err := read(t.Context(), repository(t, c, host)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, _, _ = c.Resolve(t.Context(), host+"/absent/image:v1")
	}
	if len(remotes) != 1 {
		t.Errorf("%d connections, want 1", len(remotes))
	}
}
