package treesim

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/tree/stream"
	"github.com/xylem-project/xylem/tree/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// onNetwork runs a test on a network, on virtual time.
func onNetwork(t *testing.T, cfg NetworkConfig, test func(t *testing.T, n *Network)) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(cfg)
		defer run(n)()
		test(t, n)
	})
}

// run runs a network until stop is called.
func run(n *Network) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// The suite has subtests, which a bubble cannot have: the network also works on real time.
func TestConn(t *testing.T) {
	for name, cfg := range map[string]NetworkConfig{"fast": {}, "lossy": {Loss: 0.05, Timeout: 5 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			streamtest.Conn(t, func(t *testing.T) (stream.Conn, stream.Conn) {
				n := NewNetwork(cfg)
				t.Cleanup(run(n))
				return pair(t, n, Link{1e9, 1e9})
			})
		})
	}
}

// pair adds two hosts and returns the ends of an edge between them.
func pair(t *testing.T, n *Network, link Link) (a, b stream.Conn) {
	t.Helper()
	accepted, stop := make(chan stream.Conn), make(chan struct{})
	t.Cleanup(func() { close(stop) })
	n.Add("a", link, func(stream.Conn, stream.PeerID) {})
	n.Add("b", link, func(c stream.Conn, _ stream.PeerID) {
		accepted <- c
		<-stop
	})
	a, err := n.Dial(context.Background(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	return a, <-accepted
}

var _ = io.EOF
