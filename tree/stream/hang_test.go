package stream_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/xylem-project/xylem/tree/stream"
)

// hangable returns an address at which to's connections are relayed to until hang is called; then nothing passes any more,
// and nobody is told.
func hangable(t *testing.T, to netip.AddrPort) (at netip.AddrPort, hang func()) {
	hung, hang := context.WithCancel(context.Background())
	at = relayed(t, to, func(ctx context.Context, from, to net.Conn) {
		defer from.Close()
		defer func() { <-ctx.Done() }()
		b := make([]byte, 32<<10)
		for hung.Err() == nil {
			n, err := from.Read(b)
			if hung.Err() != nil || err != nil {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
	})
	t.Cleanup(hang)
	return at, hang
}

// TestCloseOnAHungNetwork: neither a close, nor a send that it ends, nor an attachment whose context ends waits for a network
// that takes nothing any more.
func TestCloseOnAHungNetwork(t *testing.T) {
	w := newHostWorld(t)
	host := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{}), Listen: []netip.AddrPort{loopback}})
	host.HandleBare(func(s io.ReadWriteCloser) {})
	at, hang := hangable(t, host.Address().Addrs[0])
	far := stream.Address{ID: host.ID(), Addrs: []netip.AddrPort{at}}
	dialer := w.net.of(w.node)
	var conns []stream.Conn
	for range 60 { // each may send 256 KiB before the other side takes it
		c, err := dialer.Dial(t.Context(), far)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	hang()
	var senders sync.WaitGroup
	m := stream.Message{Kind: stream.KindData, Total: 256 << 10, Length: 256 << 10, Data: make([]byte, 256<<10)}
	for _, c := range conns {
		senders.Go(func() {
			for c.Send(m) == nil {
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := dialer.Attach(ctx, w.child, far, backup); err == nil {
		t.Error("attached over a network that hangs")
	}
	for _, c := range conns {
		c.Close()
	}
	senders.Wait()
	if dialer.Connections() != 1 {
		t.Error("closing waited until the connection was given up")
	}
}
