package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
	"github.com/xylem-project/xylem/scheduler/api"
)

// plainRegistry is a registryproxy.Upstream with one blob. It counts the bytes that were read of it.
type plainRegistry struct {
	data []byte

	mu   sync.Mutex
	lies bool          // its first byte is wrong
	down bool          // it does not answer
	slow chan struct{} // if not nil, one reader at a time gets slowPiece bytes in slowPause
	gave int
}

const (
	slowPiece = 64 << 10
	slowPause = 250 * time.Millisecond
)

func (r *plainRegistry) set(change func(*plainRegistry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *plainRegistry) read() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gave
}

// Do implements registryproxy.Upstream.
func (r *plainRegistry) Do(ctx context.Context, req registryproxy.Request) (*registryproxy.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return nil, fmt.Errorf("%s is down: %w", req.Host, blockfmt.ErrTransient)
	}
	data, status, header := bytes.Clone(r.data), http.StatusOK, http.Header{}
	if r.lies {
		data[0] ^= 1
	}
	if req.Range != "" {
		var first, last int
		if _, err := fmt.Sscanf(req.Range, "bytes=%d-%d", &first, &last); err != nil {
			return nil, err
		}
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		data, status = data[first:last+1], http.StatusPartialContent
	}
	return &registryproxy.Response{Status: status, Header: header, Length: int64(len(data)), From: req.Host,
		Body: &plainBody{ctx, r, bytes.NewReader(data)}}, nil
}

type plainBody struct {
	ctx  context.Context
	of   *plainRegistry
	data *bytes.Reader
}

func (b *plainBody) Read(p []byte) (int, error) {
	b.of.mu.Lock()
	slow := b.of.slow
	b.of.mu.Unlock()
	if slow != nil {
		slow <- struct{}{}
		defer func() { <-slow }()
		select {
		case <-time.After(slowPause):
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
		p = p[:min(len(p), slowPiece)]
	}
	n, err := b.data.Read(p)
	b.of.mu.Lock()
	b.of.gave += n
	b.of.mu.Unlock()
	return n, err
}

func (b *plainBody) Close() error { return nil }

// plainPlaces says where an agent is: in each tree at the same place, or nowhere.
type plainPlaces struct {
	stripes int
	cluster *cluster
	wg      sync.WaitGroup

	mu    sync.Mutex
	at    *api.Position // nil: no place is given
	trees map[digest.Digest]bool
	enter int
	leave int
}

func (p *plainPlaces) Enter(image digest.Digest, _ string, _ []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enter++
	p.trees[image] = true
	p.tell(image)
}

// tell has the cluster told where it is; mu is held.
func (p *plainPlaces) tell(image digest.Digest) {
	if p.at == nil {
		return
	}
	at := *p.at
	at.Image = image
	p.wg.Go(func() { p.cluster.Position(at) })
}

// move puts the agent elsewhere in all trees.
func (p *plainPlaces) move(at api.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at.Stripes = p.stripes
	p.at = &at
	for image := range p.trees {
		p.tell(image)
	}
}

func (p *plainPlaces) Leave(image digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave++
	delete(p.trees, image)
}

// said returns how often trees were entered and left.
func (p *plainPlaces) said() (entered, left int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.enter, p.leave
}

func (p *plainPlaces) Stripes() int                    { return p.stripes }
func (p *plainPlaces) WaitStripes(context.Context) int { return p.stripes }
func (p *plainPlaces) Reachable() bool                 { return p.stripes > 0 }
func (p *plainPlaces) Beat()                           {}

// anybody is of the cluster.
type anybody struct{}

func (anybody) Credential() []byte         { return []byte("x") }
func (anybody) Admit(string, []byte) error { return nil }

// plainAgent is what an agent in a cluster has for plain blobs.
type plainAgent struct {
	*plainPlaces
	t         *testing.T
	registry  *plainRegistry
	downloads *registryproxy.Downloads
}

// newPlainAgent returns an agent with nothing kept. Nobody serves its peers before serve.
func newPlainAgent(t *testing.T, stripes int, data []byte) *plainAgent {
	t.Helper()
	cfg := testConfig(t)
	cfg.Log, cfg.Listen, cfg.ReadTimeout = slog.New(slog.NewTextHandler(t.Output(), nil)), netip.MustParseAddrPort("127.0.0.1:0"), Default().ReadTimeout
	store, err := cache.Open(cache.Config{Dir: t.TempDir(), Budget: 1 << 30, Logger: cfg.Log})
	must(t, err)
	a := &plainAgent{t: t, registry: &plainRegistry{data: data}, plainPlaces: &plainPlaces{stripes: stripes, trees: map[digest.Digest]bool{}}}
	a.cluster = &cluster{cfg: cfg, store: store, places: a.plainPlaces, inUse: func(digest.Digest) bool { return false }, trees: map[digest.Digest]*membership{}}
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	must(t, a.cluster.connect(key, anybody{}))
	a.downloads = registryproxy.NewDownloads(plainTree{a.cluster, store, a.registry, registryproxy.Streamed(a.registry)}, plainStore{store}, cfg.Log)
	t.Cleanup(func() {
		a.wg.Wait()
		if err := errors.Join(a.downloads.Close(), a.cluster.close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return a
}

// serve feeds other agents until the test ends, and returns where.
func (a *plainAgent) serve() api.Peer {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.cluster.host.Run(ctx) }()
	a.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error(err)
		}
	})
	select {
	case <-a.cluster.host.Ready():
	case err := <-done:
		a.t.Fatal(err)
	}
	return a.cluster.address()
}

// read reads the blob to its end as a client does.
func (a *plainAgent) read(ctx context.Context) ([]byte, error) {
	d, size := digest.FromBytes(a.registry.data), int64(len(a.registry.data))
	c, err := a.downloads.Open(ctx, registryproxy.Blob{Digest: d, Size: size, Host: "registry.example", Repo: "app"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var got []byte
	for int64(len(got)) < size {
		n, err := c.Ready(ctx, int64(len(got)))
		if err != nil {
			return got, err
		}
		part, err := io.ReadAll(io.NewSectionReader(c, int64(len(got)), n))
		if err != nil {
			return got, err
		}
		got = append(got, part...)
	}
	return got, nil
}

// reads fails the test unless the client gets the blob.
func (a *plainAgent) reads() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	if got, err := a.read(ctx); err != nil || !bytes.Equal(got, a.registry.data) {
		a.t.Fatalf("%d bytes of %d, or wrong ones: %v", len(got), len(a.registry.data), err)
	}
}

func (a *plainAgent) expect(entered, left int, fromRegistry int) {
	a.t.Helper()
	e, l := a.said()
	if n := a.registry.read(); e != entered || l != left || n != fromRegistry {
		a.t.Errorf("entered %d trees, left %d, read %d bytes of the registry; want %d, %d, %d", e, l, n, entered, left, fromRegistry)
	}
}

// kept waits until the blob is.
func (a *plainAgent) kept() {
	a.t.Helper()
	waitFor(a.t, "blob kept", func() bool {
		f, err := a.cluster.store.OpenPlain(digest.FromBytes(a.registry.data))
		return err == nil && f.Close() == nil
	})
}

// TestPlainBlobsOfAnySize: small ones are read from the registry, for others a tree is entered. Each is read once.
func TestPlainBlobsOfAnySize(t *testing.T) {
	for size, trees := range map[int]int{1: 0, leastPlain - 1: 0, leastPlain: 1, blockfmt.BlockSize: 1, 3*blockfmt.BlockSize + 5: 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newPlainAgent(t, 1, noise(1, size))
				a.move(api.Position{Epoch: 1})
				a.reads()
				a.expect(trees, 0, size)
			})
		})
	}
}

// TestPlainBlobsWithoutPlace: without a scheduler the registry is read at once, and without a place soon.
func TestPlainBlobsWithoutPlace(t *testing.T) {
	for name, c := range map[string]struct {
		stripes int
		within  time.Duration
	}{"no scheduler": {0, 0}, "no place": {2, grace}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newPlainAgent(t, c.stripes, noise(2, 2<<20))
				begin := time.Now()
				a.reads()
				if took := time.Since(begin); took > c.within {
					t.Errorf("after %v, want %v", took, c.within)
				}
				a.expect(min(c.stripes, 1), 0, 2<<20)
			})
		})
	}
}

// TestPlainTreesEnd: a tree is left when nobody has needed it for tree_idle, and not while its blob comes, however slowly.
func TestPlainTreesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPlainAgent(t, 1, noise(3, 24*blockfmt.BlockSize))
		a.cluster.cfg.TreeIdle = Duration{20 * time.Second}
		a.registry.slow = make(chan struct{}, 1)
		a.move(api.Position{Epoch: 1})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.cluster.leaveIdle(ctx) })
		defer func() { cancel(); wg.Wait() }()
		begin, idle := time.Now(), a.cluster.cfg.TreeIdle.Duration
		c, err := a.read(t.Context())
		if err != nil || !bytes.Equal(c, a.registry.data) {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 2*idle {
			t.Fatalf("it took %v: too short for this test", took)
		}
		a.expect(1, 0, len(a.registry.data))
		<-time.After(idle - 3*time.Second)
		a.expect(1, 0, len(a.registry.data))
		<-time.After(idle / 2)
		a.expect(1, 1, len(a.registry.data))
		a.reads() // what is kept needs no tree
		a.expect(1, 1, len(a.registry.data))
	})
}

// pair returns a root and its child.
func pair(t *testing.T, data []byte) (root, child *plainAgent) {
	t.Helper()
	root, child = newPlainAgent(t, 1, data), newPlainAgent(t, 1, data)
	above, below := root.serve(), child.serve()
	root.move(api.Position{Epoch: 1, Children: []api.Child{{Peer: below, Epoch: 1}}})
	child.move(api.Position{Epoch: 1, Parent: &above})
	return root, child
}

// TestPlainBlobsFromAParent: a child does not read the registry, neither while the blob comes to its parent nor when the parent
// keeps it and its own registry is gone.
func TestPlainBlobsFromAParent(t *testing.T) {
	root, child := pair(t, noise(4, 5<<20+1))
	var wg sync.WaitGroup
	for _, a := range []*plainAgent{root, child} {
		wg.Go(a.reads)
	}
	wg.Wait()
	root.expect(1, 0, 5<<20+1)
	child.expect(1, 0, 0)

	root, late := pair(t, noise(5, 3<<20))
	root.reads()
	root.kept()
	root.registry.set(func(r *plainRegistry) { r.down = true })
	late.reads()
	late.expect(1, 0, 0)
	late.kept()
}

// TestWrongBytesThroughATree: they are found when all are here. No client gets them as a whole blob, the tree is left, and the registry
// has the right ones.
func TestWrongBytesThroughATree(t *testing.T) {
	data := noise(6, 4<<20)
	root, child := pair(t, data)
	root.registry.lies = true
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, err := root.read(t.Context()); err == nil {
			t.Errorf("the root's client got %d bytes as the blob", len(got))
		}
	})
	if got, err := child.read(t.Context()); err == nil && !bytes.Equal(got, data) {
		t.Error("a client got wrong bytes as the blob")
	} else if err != nil && !errors.Is(err, blockfmt.ErrCorrupt) {
		t.Errorf("the client that had got a part is told %v", err)
	}
	wg.Wait()
	child.reads()
	child.kept()
	if entered, left := child.said(); entered != 1 || left != 1 {
		t.Errorf("the child entered %d trees and left %d, want 1 and 1", entered, left)
	}
	if n := child.registry.read(); n < len(data) || n > 2*len(data) { // more than one if the root left first
		t.Errorf("the child read %d bytes of the registry for a blob of %d", n, len(data))
	}

	root.registry.set(func(r *plainRegistry) { r.lies = false })
	root.reads() // from a registry that was put right
	root.kept()
}

var _ places = (*plainPlaces)(nil)
