package stream_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// hostWorld is a parent with all blocks of an image and a child without any, each on a host.
type hostWorld struct {
	blob   *blocktest.Blob
	im     *stream.Image
	net    *hosts
	parent *stream.Node
	node   *stream.Node
	child  *stream.Share
}

func newHostWorld(t *testing.T) *hostWorld {
	w := &hostWorld{blob: blocktest.NewBlob(1, 256<<10, 16<<10), net: newHosts(t), parent: newNode(t, stream.NodeConfig{}), node: newNode(t, stream.NodeConfig{})}
	w.im = image(t, w.blob, 1)
	share(t, w.parent, stream.ShareConfig{Image: w.im, Store: full(t, w.blob), Source: w.blob})
	w.child = share(t, w.node, stream.ShareConfig{Image: w.im})
	return w
}

// attach attaches the child's host to an address.
func (w *hostWorld) attach(t *testing.T, to stream.Address) (*stream.Peer, error) {
	p, err := w.net.of(w.node).Attach(t.Context(), w.child, to, backup)
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

// TestDialFailures: addresses that are wrong in any way fail as what may be right later, but for those that cannot be.
func TestDialFailures(t *testing.T) {
	w := newHostWorld(t)
	good := w.net.of(w.parent).Address()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().(*net.TCPAddr).AddrPort()
	closed.Close()
	stranger, err := stream.IDOf(newKey().Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		to   stream.Address
		kind error
	}{
		"nobody listens": {stream.Address{ID: stranger, Addrs: []netip.AddrPort{nobody}}, blockfmt.ErrTransient},
		"no address":     {stream.Address{ID: stranger}, blockfmt.ErrTransient},
		"another peer":   {stream.Address{ID: stranger, Addrs: good.Addrs}, blockfmt.ErrTransient},
		"itself":         {stream.Address{ID: w.net.name(w.node), Addrs: good.Addrs}, blockfmt.ErrTransient},
		"no peer ID":     {stream.Address{ID: "node 7", Addrs: good.Addrs}, blockfmt.ErrNotFound},
	} {
		_, err := w.attach(t, tc.to)
		wantErr(t, name, err, tc.kind)
	}
	p, err := w.attach(t, good)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p, w.blob, 0)
}

// TestPeerThatSaysNothing: an attachment to somebody who accepts connections and is silent ends with its context.
func TestPeerThatSaysNothing(t *testing.T) {
	w := newHostWorld(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := silent.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	id, err := stream.IDOf(newKey().Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := w.net.of(w.node).Attach(ctx, w.child, stream.Address{ID: id, Addrs: []netip.AddrPort{silent.Addr().(*net.TCPAddr).AddrPort()}}, backup)
		done <- err
	}()
	defer (<-accepted).Close()
	cancel()
	if err := <-done; err == nil {
		t.Error("attached to somebody who says nothing")
	}
}

// TestHostRestarts: a parent that comes back under its address is attached to again at once, without a pause for attempts
// that failed meanwhile.
func TestHostRestarts(t *testing.T) {
	w := newHostWorld(t)
	key := newKey()
	run := func(listen netip.AddrPort) (*stream.Host, func()) {
		host, err := stream.NewHost(stream.HostConfig{Node: w.parent, Key: key, Listen: []netip.AddrPort{listen}})
		if err != nil {
			t.Fatal(err)
		}
		return host, start(t, host)
	}
	host, stop := run(loopback)
	address := host.Address()
	for range 3 {
		p, err := w.attach(t, address)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p, w.blob, 0)
		stop()
		<-p.Done()
		for range 3 {
			_, err := w.attach(t, address)
			wantErr(t, "attach to a host that is down", err, blockfmt.ErrTransient)
		}
		_, stop = run(address.Addrs[0])
	}
}

// TestHostCannotListen: Run says so, and nobody waits for a host that will never be.
func TestHostCannotListen(t *testing.T) {
	w := newHostWorld(t)
	taken := w.net.of(w.parent).Address().Addrs
	host, err := stream.NewHost(stream.HostConfig{Node: w.node, Key: newKey(), Listen: taken})
	if err != nil {
		t.Fatal(err)
	}
	if at := host.Address(); len(at.Addrs) != 0 || at.ID != host.ID() {
		t.Errorf("address before Run: %v", at)
	}
	if err := host.Run(t.Context()); err == nil {
		t.Error("listens on an address that is taken")
	}
	<-host.Ready()
	_, err = host.Attach(t.Context(), w.child, w.net.of(w.parent).Address(), backup)
	wantErr(t, "attach without a network", err, blockfmt.ErrTransient)
	if len(host.Address().Addrs) != 0 {
		t.Errorf("address: %v", host.Address())
	}
}

// TestHostThatOnlyAttaches: a host without an address to listen on can be a child.
func TestHostThatOnlyAttaches(t *testing.T) {
	w := newHostWorld(t)
	host := runHost(t, stream.HostConfig{Node: w.node})
	p, err := host.Attach(t.Context(), w.child, w.net.of(w.parent).Address(), fed)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if len(host.Address().Addrs) > 0 {
		t.Errorf("listens at %v", host.Address())
	}
	check(t, p, w.blob, 3)
}

// TestFailuresAreTold: the host tells why an edge with a child ended, unless the child left.
func TestFailuresAreTold(t *testing.T) {
	w := newHostWorld(t)
	type failure struct {
		child stream.PeerID
		err   error
	}
	told := make(chan failure, 10)
	host := runHost(t, stream.HostConfig{Node: w.parent, Listen: []netip.AddrPort{loopback}, Failed: func(child stream.PeerID, err error) { told <- failure{child, err} }})
	p, err := w.attach(t, host.Address())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	dialer := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
	c, err := dialer.Dial(t.Context(), host.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Send(stream.Message{Kind: stream.KindDetach}); err != nil {
		t.Error(err)
	}
	if f := <-told; f.child != dialer.ID() || !errors.Is(f.err, stream.ErrProtocol) {
		t.Errorf("told of %v: %v", f.child, f.err)
	}
}

// TestManyEdgesOfOneConnection: images between the same two agents, in both directions, do not get in each other's way, and
// share a connection.
func TestManyEdgesOfOneConnection(t *testing.T) {
	net := newHosts(t)
	a, b := newNode(t, stream.NodeConfig{}), newNode(t, stream.NodeConfig{})
	var wg sync.WaitGroup
	for i := range 20 {
		blob := blocktest.NewBlob(uint64(i), 128<<10, 16<<10)
		im := image(t, blob, 1)
		parent, child := a, b
		if i%2 == 1 {
			parent, child = b, a
		}
		share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob), Source: blob})
		store := newArrivals()
		p := edge(t, net, parent, share(t, child, stream.ShareConfig{Image: im, Store: store}), fed)
		wg.Go(func() {
			for range im.Len() {
				<-store.came
			}
			for n := range im.Len() {
				check(t, store, blob, n)
				check(t, p, blob, n)
			}
		})
	}
	wg.Wait()
	if n := net.of(a).Connections(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestStuckChildOverTheNetwork: what a child that does not take anything costs is bounded by the window, whatever buffers
// there are on the way, and its sibling gets everything.
func TestStuckChildOverTheNetwork(t *testing.T) {
	blob := blocktest.NewBlob(1, 16<<20, 64<<10)
	im := image(t, blob, 1)
	net := newHosts(t)
	parent := newNode(t, stream.NodeConfig{MaxWindow: 256 << 10})
	share(t, parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
	edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{Down: 1}), stream.ShareConfig{Image: im}), fed)
	store := newArrivals()
	edge(t, net, parent, share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: im, Store: store}), fed)
	for range im.Len() {
		<-store.came
	}
	extra := parent.Counters().BytesUp[stream.LanePush].Load() - blob.Index.StoredSize()
	if limit := int64(256<<10 + 3*64<<10); extra > limit {
		t.Errorf("%d bytes are on the way to the child that is stuck, want at most %d", extra, limit)
	}
}
