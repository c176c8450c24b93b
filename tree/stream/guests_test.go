package stream_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// eventually waits until something holds that others bring about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestFloodOfConnections: connections that never become more are refused beyond a bound and closed in time, and do not harm who
// is there already.
func TestFloodOfConnections(t *testing.T) {
	w := newHostWorld(t)
	n := newNode(t, stream.NodeConfig{Handshake: 2 * time.Second})
	share(t, n, stream.ShareConfig{Image: w.im, Store: full(t, w.blob)})
	host := runHost(t, stream.HostConfig{Node: n, Listen: []netip.AddrPort{loopback}})
	p, err := w.attach(t, host.Address())
	if err != nil {
		t.Fatal(err)
	}
	var open atomic.Int64
	for range 300 {
		c, err := net.Dial("tcp", host.Address().Addrs[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open.Add(1)
		go func() {
			_, _ = io.Copy(io.Discard, c)
			open.Add(-1)
		}()
	}
	eventually(t, "more connections stay than may", func() bool { return open.Load() <= 64 })
	if strangers, _, _ := host.Guests(); strangers > 64 {
		t.Errorf("%d connections are of strangers, want at most 64", strangers)
	}
	check(t, p, w.blob, 3)
	late := newNode(t, stream.NodeConfig{})
	_, err = runHost(t, stream.HostConfig{Node: late}).Attach(t.Context(), share(t, late, stream.ShareConfig{Image: w.im}), host.Address(), backup)
	wantErr(t, "attach meanwhile", err, blockfmt.ErrTransient)
	eventually(t, "strangers stay", func() bool { return open.Load() == 0 })
	eventually(t, "strangers are counted on", func() bool { strangers, _, _ := host.Guests(); return strangers == 0 })
	check(t, p, w.blob, 4)
}

// TestConnectionsOfOnePeer: a peer has a few connections; further ones are refused until one of them ends.
func TestConnectionsOfOnePeer(t *testing.T) {
	w := newHostWorld(t)
	address := w.net.of(w.parent).Address()
	key := newKey()
	attach := func() (func(), error) {
		n := newNode(t, stream.NodeConfig{})
		host := stopped(t, stream.HostConfig{Node: n, Key: key})
		stop := start(t, host)
		_, err := host.Attach(t.Context(), share(t, n, stream.ShareConfig{Image: w.im}), address, backup)
		return stop, err
	}
	var stops []func()
	for range 4 {
		stop, err := attach()
		if err != nil {
			t.Fatal(err)
		}
		stops = append(stops, stop)
	}
	_, err := attach()
	wantErr(t, "fifth connection", err, blockfmt.ErrTransient)
	stops[1]()
	eventually(t, "no connection is free again", func() bool {
		_, err := attach()
		return err == nil
	})
}

// TestFloodOfStreams: a peer opens streams as fast as it can and leaves them; what they take is bounded, and others are served.
func TestFloodOfStreams(t *testing.T) {
	w := newHostWorld(t)
	n := newNode(t, stream.NodeConfig{Edges: 8, Handshake: time.Second})
	share(t, n, stream.ShareConfig{Image: w.im, Store: full(t, w.blob)})
	host := runHost(t, stream.HostConfig{Node: n, Listen: []netip.AddrPort{loopback}})
	flooder := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
	before, most := runtime.NumGoroutine(), 0
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for i := range 2000 {
		s, err := flooder.DialBare(ctx, host.Address())
		if err != nil {
			break // the connection was closed
		}
		defer s.Close()
		_, _ = io.WriteString(s, tokens[:i%len(tokens)])
		if _, streams, _ := host.Guests(); streams > 16 {
			t.Fatalf("%d streams, want at most 16", streams)
		}
		most = max(most, runtime.NumGoroutine())
	}
	if most > before+100 {
		t.Errorf("%d goroutines, %d before", most, before)
	}
	p, err := w.attach(t, host.Address())
	if err != nil {
		t.Fatal(err)
	}
	check(t, p, w.blob, 2)
	eventually(t, "streams stay", func() bool { _, streams, prefaces := host.Guests(); return streams <= 1 && prefaces == 0 })
}

// TestEdgesAreRefusedWithAReason: a peer that has as many edges as it may hears that, and keeps those.
func TestEdgesAreRefusedWithAReason(t *testing.T) {
	w := newHostWorld(t)
	n := newNode(t, stream.NodeConfig{Edges: 2})
	share(t, n, stream.ShareConfig{Image: w.im, Store: full(t, w.blob)})
	host := runHost(t, stream.HostConfig{Node: n, Listen: []netip.AddrPort{loopback}})
	for epoch := range uint64(4) {
		other := stream.Attachment{Epoch: epoch + 1, Stripes: stream.Stripes(epoch & 1)}
		p, err := w.net.of(w.node).Attach(t.Context(), w.child, host.Address(), other)
		if epoch >= 2 {
			wantErr(t, "attach", err, blockfmt.ErrTransient)
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("attach: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
	}
}

// TestStrangersLeave: a connection on which nobody is admitted is closed, whether its streams are refused or there are none.
func TestStrangersLeave(t *testing.T) {
	n := newNode(t, stream.NodeConfig{Handshake: time.Second})
	ours := cluster("ours")
	host := runHost(t, member(n, ours, ours.issue))
	stranger := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
	s, err := stranger.DialBare(t.Context(), host.Address())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	eventually(t, "the connection stays", func() bool { return stranger.Connections() == 0 })

	start := time.Now()
	for refused := 0; ; refused++ {
		s, err := stranger.DialBare(t.Context(), host.Address())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(s, tokens+"\x00\x03???")
		answer, _ := io.ReadAll(s)
		s.Close()
		if !strings.Contains(string(answer), "is not of cluster ours") {
			if refused < 8 {
				t.Errorf("%d streams were refused with a reason, want 8", refused)
			}
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("streams are refused without end")
		}
	}
}

// TestBansAreBounded: however many peers are cut off, few are remembered.
func TestBansAreBounded(t *testing.T) {
	n := newNode(t, stream.NodeConfig{})
	for i := range 10000 {
		parent, child := stream.Pipe()
		go func() { _ = child.Send(stream.Message{Kind: stream.KindDetach}) }()
		if err := n.Serve(t.Context(), parent, stream.PeerID(rune(i))); err == nil {
			t.Fatal("a violation is none")
		}
	}
	if bans := n.Bans(); bans > 4096 {
		t.Errorf("%d peers are remembered", bans)
	}
}
