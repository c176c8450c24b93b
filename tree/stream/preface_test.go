package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// cluster issues credentials, and admits who shows one of its own for his own name.
type cluster string

func (c cluster) issue(id stream.PeerID) []byte { return fmt.Appendf(nil, "%s admits %s", c, id) }

func (c cluster) admit(id stream.PeerID, credential []byte) error {
	if !bytes.Equal(credential, c.issue(id)) {
		return fmt.Errorf("%.40q is not of cluster %s", credential, c)
	}
	return nil
}

// member returns the configuration of a host that shows one credential and admits another cluster's.
func member(n *stream.Node, admits cluster, shows func(id stream.PeerID) []byte) stream.HostConfig {
	cfg := stream.HostConfig{Node: n, Key: newKey(), Listen: []netip.AddrPort{loopback}, Admit: admits.admit}
	if shows != nil {
		cfg.Credential = func() []byte { return shows(nameOf(cfg.Key)) }
	}
	return cfg
}

// TestCredentials: who cannot show that he belongs to the cluster gets no edge, in either direction, and hears why.
func TestCredentials(t *testing.T) {
	ours, theirs := cluster("ours"), cluster("theirs")
	always := func(b []byte) func(stream.PeerID) []byte { return func(stream.PeerID) []byte { return b } }
	for name, shows := range map[string]func(stream.PeerID) []byte{
		"another cluster's": theirs.issue,
		"another peer's":    always(ours.issue("somebody")),
		"none":              nil,
		"garbage":           always([]byte{0xff, 0, '\n', 3}),
		"longest":           always(make([]byte, 4<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("child", func(t *testing.T) { refusedChild(t, ours, shows) })
			t.Run("parent", func(t *testing.T) { refusedParent(t, ours, shows) })
		})
	}
}

func refusedChild(t *testing.T, ours cluster, shows func(stream.PeerID) []byte) {
	w := newHostWorld(t)
	failed := make(chan error, 1)
	cfg := member(w.parent, ours, ours.issue)
	cfg.Failed = func(_ stream.PeerID, err error) { failed <- err }
	parent := stopped(t, cfg)
	parent.HandleWith(func(context.Context, stream.Conn, stream.PeerID) error {
		t.Error("a stream was served that was not admitted")
		return nil
	})
	start(t, parent)
	child := runHost(t, member(w.node, "anybody", shows))
	_, err := child.Attach(t.Context(), w.child, parent.Address(), fed)
	wantErr(t, "attach", err, blockfmt.ErrDenied)
	if err == nil || !strings.Contains(err.Error(), "is not of cluster ours") {
		t.Errorf("attach: %v does not say why", err)
	}
	wantErr(t, "told", <-failed, blockfmt.ErrDenied)
	if n := w.parent.Counters().Refused.Load(); n != 1 {
		t.Errorf("%d attachments were refused, want 1", n)
	}
}

// refusedParent: the parent would send blocks at once, none of which is looked at.
func refusedParent(t *testing.T, ours cluster, shows func(stream.PeerID) []byte) {
	w := newHostWorld(t)
	cfg := member(w.parent, ours, shows)
	cfg.Admit = nil
	parent := runHost(t, cfg)
	child := runHost(t, member(w.node, ours, ours.issue))
	_, err := child.Attach(t.Context(), w.child, parent.Address(), fed)
	wantErr(t, "attach", err, blockfmt.ErrDenied)
	if n := w.node.Counters().BytesDown[stream.LanePush].Load(); n > 0 || w.child.Have() > 0 {
		t.Errorf("%d bytes were taken, %d blocks kept", n, w.child.Have())
	}
}

// TestMembers: both sides belong to the cluster, or one of them does not care.
func TestMembers(t *testing.T) {
	ours := cluster("ours")
	for name, configure := range map[string]func(parent, child *stream.HostConfig){
		"both":           func(_, _ *stream.HostConfig) {},
		"neither":        func(p, c *stream.HostConfig) { p.Admit, p.Credential, c.Admit, c.Credential = nil, nil, nil, nil },
		"careless child": func(p, c *stream.HostConfig) { c.Admit, p.Credential = nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newHostWorld(t)
			up, down := member(w.parent, ours, ours.issue), member(w.node, ours, ours.issue)
			configure(&up, &down)
			parent, child := runHost(t, up), runHost(t, down)
			p, err := child.Attach(t.Context(), w.child, parent.Address(), backup)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			check(t, p, w.blob, 3)
		})
	}
}

// TestOwnCredentialTooLarge: a credential that no other side would take is the host's own mistake, and is said there.
func TestOwnCredentialTooLarge(t *testing.T) {
	w := newHostWorld(t)
	cfg := member(w.node, "any", func(stream.PeerID) []byte { return make([]byte, 4<<10+1) })
	cfg.Admit = nil
	host := runHost(t, cfg)
	_, err := host.Attach(t.Context(), w.child, w.net.of(w.parent).Address(), backup)
	wantErr(t, "attach with it", err, blockfmt.ErrUnsupported)
	other := newNode(t, stream.NodeConfig{})
	_, err = runHost(t, stream.HostConfig{Node: other}).Attach(t.Context(), share(t, other, stream.ShareConfig{Image: w.im}), host.Address(), backup)
	wantErr(t, "attach to it", err, blockfmt.ErrUnsupported)
}

// TestCredentialRevoked: an edge of somebody who is no longer admitted ends with Disconnect, and does not come again.
func TestCredentialRevoked(t *testing.T) {
	ours := cluster("ours")
	w := newHostWorld(t)
	var mu sync.Mutex
	revoked := map[stream.PeerID]bool{}
	up := member(w.parent, ours, ours.issue)
	up.Admit = func(id stream.PeerID, credential []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if revoked[id] {
			return errors.New("revoked")
		}
		return ours.admit(id, credential)
	}
	parent, child := runHost(t, up), runHost(t, member(w.node, ours, ours.issue))
	p, err := child.Attach(t.Context(), w.child, parent.Address(), backup)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p, w.blob, 1)
	mu.Lock()
	revoked[child.ID()] = true
	mu.Unlock()
	if err := parent.Disconnect(child.ID()); err != nil {
		t.Error(err)
	}
	<-p.Done()
	_, err = p.Block(t.Context(), w.im.Ref(2))
	wantErr(t, "read after it", err, blockfmt.ErrTransient)
	_, err = child.Attach(t.Context(), w.child, parent.Address(), backup)
	wantErr(t, "attach after it", err, blockfmt.ErrDenied)
}

const tokens = "\x13/multistream/1.0.0\n\x10/xylem/blocks/1\n"

// TestBadPrefaces: whatever comes instead of a preface ends the stream in time, and nobody is cut off for what somebody may have
// sent who is not known yet.
func TestBadPrefaces(t *testing.T) {
	for name, tc := range map[string]struct{ sent, want string }{
		"nothing":            {"", ""},
		"half of a token":    {"\x13/multi", ""},
		"no size":            {tokens + "\x00", ""},
		"half a credential":  {tokens + "\x00\x09ours", ""},
		"oversized":          {tokens + "\x10\x01", "4097 bytes in a preface, at most 4096"},
		"another protocol":   {"\x13/multistream/1.0.0\n\x10/xylem/blocks/9\n", "na"},
		"no multistream":     {"GET / HTTP/1.1\r\n\r\n", ""},
		"frames at once":     {string(frame(stream.Message{Kind: stream.KindAttach, Image: "sha256:00"})), ""},
		"garbage credential": {tokens + "\x00\x03???", "is not of cluster ours"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, stream.NodeConfig{Handshake: 200 * time.Millisecond})
			host := runHost(t, member(n, "ours", cluster("ours").issue))
			dialer := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
			s, err := dialer.DialBare(t.Context(), host.Address())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := io.WriteString(s, tc.sent); err != nil {
				t.Error(err)
			}
			answer, _ := io.ReadAll(s) // the stream's end is what matters
			if !strings.Contains(string(answer), tc.want) {
				t.Errorf("answered %q, want %q in it", answer, tc.want)
			}
			if n.Counters().CutOffs.Load() > 0 {
				t.Error("who sent it was cut off")
			}
		})
	}
}

// TestSlowPreface: a peer that sends its preface byte by byte is let go in time, as if it had stopped.
func TestSlowPreface(t *testing.T) {
	n := newNode(t, stream.NodeConfig{Handshake: 200 * time.Millisecond})
	failed := make(chan error, 1)
	host := runHost(t, stream.HostConfig{Node: n, Listen: []netip.AddrPort{loopback}, Failed: func(_ stream.PeerID, err error) { failed <- err }})
	dialer := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
	s, err := dialer.DialBare(t.Context(), host.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for _, b := range []byte(tokens + "\x10\x00" + strings.Repeat("x", 4<<10)) {
			select {
			case <-tick.C:
			case <-done:
				return
			}
			if _, err := s.Write([]byte{b}); err != nil {
				return
			}
		}
	})
	if err := <-failed; err == nil {
		t.Error("a slow preface is no failure")
	}
}

// TestBadAnswers: an opener takes nothing for an admission but one, and never more than its bounds.
func TestBadAnswers(t *testing.T) {
	accept := string(frame(stream.Message{Kind: stream.KindAccept, Epoch: 1}))
	for name, tc := range map[string]struct {
		sent string
		kind error
	}{
		"good":               {tokens + "\x00\x00\x00" + accept, nil},
		"refused":            {tokens + "\x03\x00\x02no", blockfmt.ErrDenied},
		"unknown verdict":    {tokens + "\x63\x00\x02no", blockfmt.ErrTransient},
		"endless refusal":    {tokens + "\x03\x01\x01" + strings.Repeat("n", 257), stream.ErrProtocol},
		"oversized":          {tokens + "\x00\x10\x01", stream.ErrProtocol},
		"not supported":      {"\x13/multistream/1.0.0\n\x03na\n", blockfmt.ErrUnsupported},
		"another protocol":   {"\x13/multistream/1.0.0\n\x10/xylem/blocks/2\n", stream.ErrProtocol},
		"endless token":      {"\x13/multistream/1.0.0\n\xff\x7f", blockfmt.ErrTransient},
		"ends in a token":    {"\x13/multistr", blockfmt.ErrTransient},
		"ends after a token": {"\x13/multistream/1.0.0\n", blockfmt.ErrTransient},
		"ends":               {tokens, blockfmt.ErrTransient},
		"ends in a verdict":  {tokens + "\x00\x01", blockfmt.ErrTransient},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHostWorld(t)
			parent := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{}), Listen: []netip.AddrPort{loopback}})
			parent.HandleBare(func(s io.ReadWriteCloser) {
				_, _ = io.WriteString(s, tc.sent)
				s.Close()
			})
			p, err := w.net.of(w.node).Attach(t.Context(), w.child, parent.Address(), backup)
			if err == nil {
				defer p.Close()
			}
			wantErr(t, "attach", err, tc.kind)
		})
	}
}

// TestRoundTrips: a pushed block is here after so many round trips: TCP, the name of the security protocol, TLS, and one for
// credentials, attachment and the block itself; over a connection that there is, after the last one only.
func TestRoundTrips(t *testing.T) {
	const rtt = 200 * time.Millisecond
	w := newHostWorld(t)
	ours := cluster("ours")
	parent := runHost(t, member(w.parent, ours, ours.issue))
	child := runHost(t, member(w.node, ours, ours.issue))
	far := stream.Address{ID: parent.ID(), Addrs: []netip.AddrPort{delayed(t, parent.Address().Addrs[0], rtt/2)}}
	first := func(im *stream.Image, s *stream.Share, came <-chan int) float64 {
		start := time.Now()
		p, err := child.Attach(t.Context(), s, far, fed)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		<-came
		return float64(time.Since(start)) / float64(rtt)
	}
	for i, want := range []float64{3, 1} { // and TCP's, which the relay does not delay
		blob := blocktest.NewBlob(uint64(10+i), 64<<10, 16<<10)
		im := image(t, blob, 1)
		share(t, w.parent, stream.ShareConfig{Image: im, Store: full(t, blob)})
		store := newArrivals()
		if n := first(im, share(t, w.node, stream.ShareConfig{Image: im, Store: store}), store.came); n < want || n > want+0.9 {
			t.Errorf("attachment %d: first block after %.2f round trips, want %v", i, n, want)
		}
	}
}

// delayed returns an address at which to's connections are relayed to with a delay in each direction.
func delayed(t *testing.T, to netip.AddrPort, delay time.Duration) netip.AddrPort {
	return relayed(t, to, func(_ context.Context, from, to net.Conn) { relay(from, to, delay) })
}

// relayed returns an address whose connections are relayed to another: pass copies in one direction, until ctx ends at the latest, when
// both ends are closed.
func relayed(t *testing.T, to netip.AddrPort, pass func(ctx context.Context, from, to net.Conn)) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() {
		l.Close()
		stop()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to.String())
			if err != nil {
				a.Close()
				return
			}
			context.AfterFunc(ctx, func() {
				a.Close()
				b.Close()
			})
			wg.Go(func() { pass(ctx, a, b) })
			wg.Go(func() { pass(ctx, b, a) })
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// relay copies with a delay, whatever the rate, and closes both when one ends.
func relay(from, to net.Conn, delay time.Duration) {
	type chunk struct {
		due  time.Time
		data []byte
	}
	chunks := make(chan chunk, 10000)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for c := range chunks {
			time.Sleep(time.Until(c.due))
			if _, err := to.Write(c.data); err != nil {
				from.Close()
			}
		}
	})
	for {
		b := make([]byte, 32<<10)
		n, err := from.Read(b)
		if n > 0 {
			chunks <- chunk{time.Now().Add(delay), b[:n]}
		}
		if err != nil {
			break
		}
	}
	close(chunks)
	wg.Wait()
	from.Close()
}
