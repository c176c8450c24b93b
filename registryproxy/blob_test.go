package registryproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

// big is a blob of eight blocks, the last of which is short.
var (
	big       = noise(1, 7*blockfmt.BlockSize+1234)
	bigDigest = digest.FromBytes(big)
	bigPath   = "/v2/some/image/blobs/" + bigDigest.String() + "?ns=" + host
)

// gated is a registry with one blob, whose body goes on as far as the gate is open.
type gated struct {
	body []byte        // what it sends in place of big
	name digest.Digest // of big

	mu     sync.Mutex
	open   int // bytes of big that may be sent
	change chan struct{}
	cut    map[int]bool // offsets at which the connection breaks, once each
}

func newGated(body []byte) *gated {
	return &gated{body: body, name: bigDigest, change: make(chan struct{}), cut: map[int]bool{}}
}

// let opens the gate up to n bytes.
func (g *gated) let(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = n
	close(g.change)
	g.change = make(chan struct{})
}

func (g *gated) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, g.name.String()) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	off, end := 0, len(g.body)
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &end); n == 2 {
		end++
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, len(g.body)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(end-off))
	if r.Header.Get("Range") != "" {
		w.WriteHeader(http.StatusPartialContent)
	}
	if r.Method == http.MethodHead {
		return
	}
	const step = 64 << 10
	for off < end {
		open := g.wait(r.Context(), off)
		if r.Context().Err() != nil {
			return
		}
		g.mu.Lock()
		cut := g.cut[off]
		delete(g.cut, off)
		g.mu.Unlock()
		if cut {
			panic(http.ErrAbortHandler)
		}
		n := min(step-off%step, end-off, open-off)
		if _, err := w.Write(g.body[off : off+n]); err != nil {
			return
		}
		off += n
	}
}

// wait returns how far the gate is open, behind off.
func (g *gated) wait(ctx context.Context, off int) int {
	for {
		g.mu.Lock()
		open, change := g.open, g.change
		g.mu.Unlock()
		if off < open {
			return open
		}
		select {
		case <-change:
		case <-ctx.Done():
			return 0
		}
	}
}

// TestOneReadForManyClients: 64 clients that ask for a blob at the same time cost the registry one GET.
func TestOneReadForManyClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		body := big[:blockfmt.BlockSize+1000]
		g := newGated(body)
		g.name = digest.FromBytes(body)
		w.up.set(host, g)
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				r := w.get("/v2/some/image/blobs/"+g.name.String()+"?ns="+host, "Authorization: Bearer "+strconv.Itoa(i))
				if r.status != 200 || r.err != nil || !bytes.Equal(r.body, body) {
					t.Errorf("client %d: status %d, %d bytes, %v", i, r.status, len(r.body), r.err)
				}
			})
		}
		synctest.Wait()
		g.let(len(body))
		wg.Wait()
		if n := w.up.count("GET"); n != 1 {
			t.Errorf("%d reads of the registry, want 1: %q", n, w.up.requests())
		}
	})
}

// TestFirstByteBeforeTheLast: a client reads what is here while the rest is not, but for the last block.
func TestFirstByteBeforeTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		w.up.set(host, g)
		g.let(2*blockfmt.BlockSize + 17)
		resp := w.start(t.Context(), http.MethodGet, bigPath)
		defer resp.Body.Close()
		read := func(n int) []byte {
			b := make([]byte, n)
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatal(err)
			}
			return b
		}
		if !bytes.Equal(read(2*blockfmt.BlockSize), big[:2*blockfmt.BlockSize]) {
			t.Fatal("other bytes")
		}
		got := make(chan []byte)
		go func() { got <- read(5 * blockfmt.BlockSize); got <- read(1234) }()
		synctest.Wait()
		g.let(len(big) - 1)
		if !bytes.Equal(<-got, big[2*blockfmt.BlockSize:7*blockfmt.BlockSize]) {
			t.Fatal("other bytes")
		}
		synctest.Wait()
		select {
		case <-got:
			t.Fatal("the last block was given before the last byte was here")
		default:
		}
		g.let(len(big))
		if !bytes.Equal(<-got, big[7*blockfmt.BlockSize:]) {
			t.Fatal("other bytes at the end")
		}
	})
}

// TestWrongBytes: a client never gets a whole wrong blob, and what is wrong comes from somebody else the next time.
func TestWrongBytes(t *testing.T) {
	flipped := bytes.Clone(big)
	flipped[3*blockfmt.BlockSize] ^= 1
	for name, test := range map[string]struct {
		mirror, registry []byte
		aborted          bool // the client that is reading meanwhile
		second           int  // status of the next client
	}{
		"of the mirror":                {flipped, big, true, 200},
		"of the registry":              {flipped, flipped, true, 200},
		"in length, of the mirror":     {big[:1000], big, false, 200},
		"shorter, of both":             {big[:1000], big[:1000], false, 502},
		"of nobody":                    {big, big, false, 200},
		"longer than the registry has": {append(bytes.Clone(big), 1), big, false, 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				mirror, registry := newGated(test.mirror), newGated(test.registry)
				sized := func(h *gated) http.Handler { // the length of a HEAD is right
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.Method == http.MethodHead {
							w.Header().Set("Content-Length", strconv.Itoa(len(big)))
							return
						}
						h.ServeHTTP(w, r)
					})
				}
				w.up.mirrors[host] = []string{"mirror.example"}
				w.up.set("mirror.example", sized(mirror))
				w.up.set(host, sized(registry))
				registry.let(1 << 30)
				mirror.let(4 * blockfmt.BlockSize) // the reader has begun when the rest comes: else it would get right bytes
				resp := w.start(t.Context(), http.MethodGet, bigPath)
				mirror.let(1 << 30)
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode == 200 && err == nil && !bytes.Equal(body, big) {
					t.Fatal("a whole wrong blob")
				}
				if test.aborted && (err == nil || len(body) > 7*blockfmt.BlockSize) {
					t.Errorf("the reader of wrong bytes got %d bytes, %v", len(body), err)
				}
				synctest.Wait()
				registry.mu.Lock()
				if name == "of the registry" { // it recovers
					registry.body = big
				}
				registry.mu.Unlock()
				r := w.get(bigPath)
				if r.status != test.second || r.err != nil || (r.status == 200 && !bytes.Equal(r.body, big)) {
					t.Errorf("the next client: status %d, %d bytes, %v; requests %q", r.status, len(r.body), r.err, w.up.requests())
				}
			})
		})
	}
}

// TestClientsGoAway: a download goes on for the others, and for nobody.
func TestClientsGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		w.up.set(host, g)
		g.let(blockfmt.BlockSize)
		ctx, leave := context.WithCancel(t.Context())
		first := w.start(ctx, http.MethodGet, bigPath)
		second := w.start(t.Context(), http.MethodGet, bigPath)
		leave()
		first.Body.Close()
		synctest.Wait()
		g.let(2 * blockfmt.BlockSize)
		if _, err := io.ReadFull(second.Body, make([]byte, blockfmt.BlockSize+1)); err != nil {
			t.Fatalf("the other client: %v", err)
		}
		second.Body.Close()
		synctest.Wait()
		g.let(len(big))
		synctest.Wait()
		if w.disk.kept != 1 {
			t.Fatal("the blob was not fetched to its end")
		}
		if r := w.get(bigPath); !bytes.Equal(r.body, big) {
			t.Errorf("status %d, %d bytes", r.status, len(r.body))
		}
		if n := w.up.count("GET"); n != 1 {
			t.Errorf("%d reads of the registry, want 1", n)
		}
	})
}

// TestBrokenConnectionsAreResumed: each byte comes once.
func TestBrokenConnectionsAreResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		g.cut[blockfmt.BlockSize+64<<10], g.cut[4*blockfmt.BlockSize] = true, true
		g.let(len(big))
		w.up.set(host, g)
		if r := w.get(bigPath); r.err != nil || !bytes.Equal(r.body, big) {
			t.Fatalf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		at := "GET " + host + "/v2/some/image/blobs/" + bigDigest.String()
		want := []string{at, fmt.Sprintf("%s bytes=%d-%d", at, blockfmt.BlockSize, len(big)-1), fmt.Sprintf("%s bytes=%d-%d", at, 4*blockfmt.BlockSize, len(big)-1)}
		if got := w.up.requests()[1:]; strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("requests %q, want %q", got, want)
		}
	})
}

// TestRegistryThatGoesAway: clients get an error soon, what is here stays, and the next client has the rest fetched.
func TestRegistryThatGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		w.up.set(host, g)
		g.let(3 * blockfmt.BlockSize)
		resp := w.start(t.Context(), http.MethodGet, bigPath)
		synctest.Wait()
		w.up.set(host, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
		g.mu.Lock()
		g.cut[3*blockfmt.BlockSize] = true
		g.mu.Unlock()
		g.let(len(big))
		body, err := io.ReadAll(resp.Body)
		if err == nil || !bytes.Equal(body, big[:3*blockfmt.BlockSize]) {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
		resp.Body.Close()
		if r := w.get(bigPath, "Range: bytes=0-99"); r.status != 206 || !bytes.Equal(r.body, big[:100]) {
			t.Errorf("what is here: status %d", r.status)
		}
		synctest.Wait()
		w.up.set(host, g)
		before := len(w.up.requests())
		if r := w.get(bigPath); r.err != nil || !bytes.Equal(r.body, big) {
			t.Fatalf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		want := fmt.Sprintf("bytes=%d-%d", 3*blockfmt.BlockSize, len(big)-1)
		if got := w.up.requests()[before:]; len(got) != 1 || !strings.HasSuffix(got[0], want) {
			t.Errorf("requests %q, want one of %q", got, want)
		}
	})
}

// TestAbandonedBeginningsAreThrownAway: the disk of a blob that nobody asks for again is free after a while.
func TestAbandonedBeginningsAreThrownAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		w.up.set(host, g)
		for _, off := range []int{2, 2, 2} {
			g.cut[off*blockfmt.BlockSize] = true
		}
		g.let(2 * blockfmt.BlockSize)
		resp := w.start(t.Context(), http.MethodGet, bigPath)
		synctest.Wait()
		w.up.set(host, http.NotFoundHandler())
		g.let(len(big))
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		time.Sleep(9 * time.Minute)
		if w.disk.files() != 1 {
			t.Fatalf("%d files after 9 minutes, want 1", w.disk.files())
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if w.disk.files() != 0 {
			t.Fatalf("%d files after 11 minutes, want 0", w.disk.files())
		}
	})
}

// TestNoRoomOnDisk: the bytes pass by, verified all the same.
func TestNoRoomOnDisk(t *testing.T) {
	flipped := bytes.Clone(big)
	flipped[0] ^= 1
	for name, test := range map[string]struct {
		body          []byte
		full, broken  error
		header        string
		status, bytes int
		ok            bool
	}{
		"to begin with":           {big, errors.New("no room"), nil, "", 200, len(big), true},
		"for the first block":     {big, nil, errors.New("no space left on device"), "", 200, len(big), true},
		"for a part":              {big, errors.New("no room"), nil, "Range: bytes=600000-699999", 206, 100000, true},
		"and the bytes are wrong": {flipped, errors.New("no room"), nil, "", 200, 7 * blockfmt.BlockSize, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.disk.full, w.disk.broken = test.full, test.broken
				g := newGated(test.body)
				g.let(len(big))
				w.up.set(host, g)
				r := w.get(bigPath, test.header+": ")
				if test.header != "" {
					r = w.get(bigPath, test.header)
				}
				if r.status != test.status || len(r.body) != test.bytes || (r.err == nil) != test.ok {
					t.Errorf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
				}
				if n := w.proxy.Counters().DirectBytes.Load(); n < int64(test.bytes) {
					t.Errorf("%d bytes passed the disk by, want %d", n, test.bytes)
				}
			})
		})
	}
}

// TestFarParts: who waits for a part far ahead gets it first, and no byte comes twice.
func TestFarParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := noise(2, 60*blockfmt.BlockSize)
		d := digest.FromBytes(body)
		w := newWorld(t)
		var sent int
		var mu sync.Mutex
		gate := make(chan struct{})
		w.up.set(host, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			off, end := 0, len(body)
			if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &end); n == 2 {
				end++
				rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, len(body)))
			}
			rw.Header().Set("Content-Length", strconv.Itoa(end-off))
			if r.Header.Get("Range") != "" {
				rw.WriteHeader(http.StatusPartialContent)
			}
			for ; off < end && r.Method == http.MethodGet; off += blockfmt.BlockSize {
				if off > 0 && r.Header.Get("Range") == "" {
					<-gate
				}
				n, err := rw.Write(body[off:min(off+blockfmt.BlockSize, end)])
				mu.Lock()
				sent += n
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}))
		path := "/v2/some/image/blobs/" + d.String() + "?ns=" + host
		whole := make(chan reply)
		go func() { whole <- w.get(path) }()
		synctest.Wait()
		far := make(chan reply)
		go func() {
			far <- w.get(path, fmt.Sprintf("Range: bytes=%d-%d", 40*blockfmt.BlockSize, 41*blockfmt.BlockSize-1))
		}()
		synctest.Wait()
		close(gate)
		if r := <-far; r.status != 206 || !bytes.Equal(r.body, body[40*blockfmt.BlockSize:41*blockfmt.BlockSize]) {
			t.Errorf("far part: status %d, %d bytes", r.status, len(r.body))
		}
		if r := <-whole; r.err != nil || !bytes.Equal(r.body, body) {
			t.Errorf("whole: status %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
		gets := []string{}
		for _, line := range w.up.requests() {
			if _, part, ok := strings.Cut(line, "bytes="); ok {
				gets = append(gets, part)
			}
		}
		want := fmt.Sprintf("%d-%d", 40*blockfmt.BlockSize, len(body)-1)
		if len(gets) > 4 || gets[0] != want {
			t.Errorf("parts %q, want first %q and then few for what is missing", gets, want)
		}
		if over := sent - len(body); over > 2*blockfmt.BlockSize { // what a broken connection had in flight
			t.Errorf("%d bytes came in vain", over)
		}
	})
}

// TestDownloadsEndWithTheProxy: Close does not wait for a registry that says nothing, and its readers get an error.
func TestDownloadsEndWithTheProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		w.up.set(host, g)
		g.let(blockfmt.BlockSize)
		resp := w.start(t.Context(), http.MethodGet, bigPath)
		synctest.Wait()
		if err := w.blobs.Close(); err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%d bytes without an error", len(body))
		}
		resp.Body.Close()
		if _, err := w.blobs.Open(t.Context(), registryproxy.Blob{Digest: bigDigest, Size: int64(len(big))}); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("after the end: %v", err)
		}
		synctest.Wait()
	})
}
