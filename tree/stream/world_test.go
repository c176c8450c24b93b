package stream_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image returns the image of one blob.
func image(t testing.TB, blob *blocktest.Blob, stripes int) *stream.Image {
	t.Helper()
	im, err := stream.NewImage(digest.FromString("manifest of "+string(blob.Index.Blob())), stripes, blob.Index)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// anyone is allowed.
func anyone(stream.PeerID) error { return nil }

// reports collects who was cut off.
type reports struct {
	mu   sync.Mutex
	list []stream.CutOff
	came chan struct{} // of room for all that tests cause
}

func newReports() *reports { return &reports{came: make(chan struct{}, 100)} }

func (r *reports) add(c stream.CutOff) {
	r.mu.Lock()
	r.list = append(r.list, c)
	r.mu.Unlock()
	r.came <- struct{}{}
}

func (r *reports) all() []stream.CutOff {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]stream.CutOff(nil), r.list...)
}

func newNode(t testing.TB, cfg stream.NodeConfig) *stream.Node {
	t.Helper()
	if cfg.Authorize == nil {
		cfg.Authorize = anyone
	}
	n, err := stream.NewNode(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// share shares an image and ends that with the test.
func share(t testing.TB, n *stream.Node, cfg stream.ShareConfig) *stream.Share {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = new(blocktest.Memory)
	}
	if cfg.Source == nil {
		cfg.Source = cfg.Store
	}
	cfg.Recycle = true // no store of these tests holds on to bytes
	s, err := n.Share(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// full returns a store with all blocks of a blob.
func full(t testing.TB, blob *blocktest.Blob) *blocktest.Memory {
	t.Helper()
	store := new(blocktest.Memory)
	for _, ref := range blob.Refs() {
		if err := store.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

// A network makes edges.
type network interface {
	// attach makes share's node a child, called child, of the node, called parent.
	attach(ctx context.Context, parent *stream.Node, child *stream.Share, at stream.Attachment) (*stream.Peer, error)
	// name is how the others know a node.
	name(n *stream.Node) stream.PeerID
	// kill ends a node's network all at once.
	kill(n *stream.Node)
}

// networks are all kinds of network, for tests that hold on each.
func networks(t *testing.T, test func(t *testing.T, net network)) {
	t.Run("pipe", func(t *testing.T) { test(t, newPipes(t)) })
	t.Run("libp2p", func(t *testing.T) { test(t, newHosts(t)) })
}

// pipes is a network in memory.
type pipes struct {
	ctx   context.Context
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[*stream.Node][]stream.Conn
	ids   map[*stream.Node]stream.PeerID
	wrap  func(parent, child stream.Conn) (stream.Conn, stream.Conn) // tampers with edges
	errs  []error
}

func newPipes(t testing.TB) *pipes {
	p := &pipes{ids: map[*stream.Node]stream.PeerID{}, conns: map[*stream.Node][]stream.Conn{}}
	ctx, stop := context.WithCancel(context.Background())
	p.ctx = ctx
	t.Cleanup(func() {
		stop()
		p.wg.Wait()
	})
	return p
}

func (p *pipes) name(n *stream.Node) stream.PeerID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ids[n] == "" {
		p.ids[n] = stream.PeerID(fmt.Sprintf("node-%d", len(p.ids)))
	}
	return p.ids[n]
}

func (p *pipes) attach(ctx context.Context, parent *stream.Node, child *stream.Share, at stream.Attachment) (*stream.Peer, error) {
	up, down := stream.Pipe()
	if p.wrap != nil {
		up, down = p.wrap(up, down)
	}
	name := p.name(child.Node())
	p.mu.Lock()
	p.conns[parent] = append(p.conns[parent], up)
	p.mu.Unlock()
	p.wg.Go(func() {
		err := parent.Serve(p.ctx, up, name)
		p.mu.Lock()
		p.errs = append(p.errs, err)
		p.mu.Unlock()
	})
	return child.Attach(ctx, down, p.name(parent), at)
}

func (p *pipes) kill(n *stream.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns[n] {
		c.Close()
	}
}

// hosts is a network over loopback.
type hosts struct {
	t     testing.TB
	mu    sync.Mutex
	hosts map[*stream.Node]*stream.Host
	stops map[*stream.Node]func()
}

func newHosts(t testing.TB) *hosts {
	return &hosts{t: t, hosts: map[*stream.Node]*stream.Host{}, stops: map[*stream.Node]func(){}}
}

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

var loopbacks = []netip.AddrPort{loopback}

// of returns the running host of a node.
func (h *hosts) of(n *stream.Node) *stream.Host {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hosts[n] == nil {
		host, err := stream.NewHost(stream.HostConfig{Node: n, Key: newKey(), Listen: []netip.AddrPort{loopback}})
		if err != nil {
			h.t.Fatal(err)
		}
		h.hosts[n], h.stops[n] = host, start(h.t, host)
	}
	return h.hosts[n]
}

func newKey() ed25519.PrivateKey {
	_, key, _ := ed25519.GenerateKey(nil) // never fails
	return key
}

// nameOf returns the name of a key's owner.
func nameOf(key ed25519.PrivateKey) stream.PeerID {
	id, _ := stream.IDOf(key.Public().(ed25519.PublicKey)) // never fails with a key of its kind
	return id
}

// runHost runs a host until the test ends.
func runHost(t testing.TB, cfg stream.HostConfig) *stream.Host {
	t.Helper()
	host := stopped(t, cfg)
	start(t, host)
	return host
}

// stopped returns a host that does not run yet.
func stopped(t testing.TB, cfg stream.HostConfig) *stream.Host {
	t.Helper()
	if cfg.Key == nil {
		cfg.Key = newKey()
	}
	host, err := stream.NewHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// start runs a host until the test ends, or stop is called.
func start(t testing.TB, host *stream.Host) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("host: %v", err)
		}
	})
	t.Cleanup(stop)
	<-host.Ready()
	return stop
}

func (h *hosts) kill(n *stream.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stops[n]()
}

func (h *hosts) name(n *stream.Node) stream.PeerID { return h.of(n).ID() }

func (h *hosts) attach(ctx context.Context, parent *stream.Node, child *stream.Share, at stream.Attachment) (*stream.Peer, error) {
	return h.of(child.Node()).Attach(ctx, child, h.of(parent).Address(), at)
}

// edge makes an edge that must come about, and ends it with the test.
func edge(t testing.TB, net network, parent *stream.Node, child *stream.Share, at stream.Attachment) *stream.Peer {
	t.Helper()
	p, err := net.attach(t.Context(), parent, child, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// check reads a block, which must be right.
func check(t testing.TB, src blockfmt.Source, blob *blocktest.Blob, i int) {
	t.Helper()
	ref := blob.Index.Ref(i)
	got, err := src.Block(context.Background(), ref)
	if err != nil {
		t.Errorf("block %d: %v", i, err)
	} else if !bytes.Equal(got, blob.Bytes(ref)) {
		t.Errorf("block %d: wrong bytes", i)
	}
}

// arrivals is a Store that tells what is put into it.
type arrivals struct {
	blocktest.Memory
	came chan int
}

func newArrivals() *arrivals { return &arrivals{came: make(chan int, 10000)} }

func (a *arrivals) Put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	err := a.Memory.Put(ctx, ref, stored)
	if err == nil {
		a.came <- ref.Number
	}
	return err
}

// wantErr checks an error's kind.
func wantErr(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error %v, want %v", what, err, kind)
	}
}

// streamPair returns the ends of a libp2p stream.
func streamPair(t *testing.T) (stream.Conn, stream.Conn) {
	conns, done := make(chan stream.Conn), make(chan struct{})
	host, err := stream.NewHost(stream.HostConfig{Node: newNode(t, stream.NodeConfig{}), Key: newKey(), Listen: []netip.AddrPort{loopback}})
	if err != nil {
		t.Fatal(err)
	}
	host.HandleWith(func(_ context.Context, c stream.Conn, _ stream.PeerID) error {
		conns <- c
		<-done
		return nil
	})
	start(t, host)
	t.Cleanup(func() { close(done) })
	dialer := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
	a, err := dialer.Dial(t.Context(), host.Address())
	if err != nil {
		t.Fatal(err)
	}
	return a, <-conns
}
