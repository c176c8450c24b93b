package treesim

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
	"github.com/xylem-project/xylem/tree/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// onNetwork runs a test on a network, on virtual time.
func onNetwork(t *testing.T, cfg NetworkConfig, test func(t *testing.T, n *Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(cfg)
		t.Cleanup(run(n))
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
	for name, cfg := range map[string]NetworkConfig{"fair": {}, "plain queues": {FIFO: true}, "lossy": {Loss: 0.05, Timeout: 5 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			streamtest.Conn(t, func(t *testing.T) (stream.Conn, stream.Conn) {
				n := NewNetwork(cfg)
				t.Cleanup(run(n))
				a, b := add(t, n, "a", Link{1e9, 1e9}), add(t, n, "b", Link{1e9, 1e9})
				return connect(t, n, a, b)
			})
		})
	}
}

// machine is a host that accepts edges.
type machine struct {
	id    stream.PeerID
	edges chan stream.Conn
}

func add(t *testing.T, n *Network, id stream.PeerID, link Link) *machine {
	m := &machine{id, make(chan stream.Conn)}
	stop := make(chan struct{})
	n.Add(id, link, func(c stream.Conn, _ stream.PeerID) {
		select {
		case m.edges <- c:
			<-stop
		case <-stop:
		}
	})
	t.Cleanup(func() { close(stop) })
	return m
}

func connect(t *testing.T, n *Network, from, to *machine) (near, far stream.Conn) {
	t.Helper()
	near, err := n.Dial(context.Background(), from.id, to.id)
	if err != nil {
		t.Fatal(err)
	}
	return near, <-to.edges
}

// blockOf is a message with so many bytes of data, about.
func blockOf(n int) stream.Message {
	return stream.Message{Kind: stream.KindData, Length: n, Total: n, Data: make([]byte, n)}
}

// send sends messages in a goroutine of its own.
func send(c stream.Conn, n int, m stream.Message) {
	go func() {
		for range n {
			if c.Send(m) != nil {
				return
			}
		}
	}()
}

// receive takes messages, and returns when the last one came.
func receive(t *testing.T, c stream.Conn, n int) time.Time {
	t.Helper()
	for range n {
		if _, err := c.Receive(nil); err != nil {
			t.Error(err)
		}
	}
	return time.Now()
}

// about fails unless a time is what it should be, or up to a tenth and a millisecond more.
func about(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want || got > want*11/10+time.Millisecond {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestLinksHaveRates(t *testing.T) {
	for name, links := range map[string][2]Link{"uplink": {{1e6, 0}, {0, 0}}, "downlink": {{0, 0}, {0, 1e6}}, "both": {{1e6, 0}, {0, 1e6}}} {
		t.Run(name, func(t *testing.T) {
			onNetwork(t, NetworkConfig{Delay: 100 * time.Millisecond}, func(t *testing.T, n *Network) {
				near, far := connect(t, n, add(t, n, "a", links[0]), add(t, n, "b", links[1]))
				start := time.Now()
				send(near, 10, blockOf(100_000))
				about(t, "a megabyte", receive(t, far, 10).Sub(start), 1100*time.Millisecond)
				if n.Sent("a") != 1_000_000 {
					t.Errorf("%d bytes were sent", n.Sent("a"))
				}
			})
		})
	}
}

// TestUplinkIsShared: edges take turns, or come one after the other in plain queues.
func TestUplinkIsShared(t *testing.T) {
	for name, want := range map[string]struct {
		fifo  bool
		first time.Duration
	}{"fair": {false, 960 * time.Millisecond}, "plain": {true, 500 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			onNetwork(t, NetworkConfig{FIFO: want.fifo, Buffer: 1 << 20, Segment: 10_000}, func(t *testing.T, n *Network) {
				a := add(t, n, "a", Link{1e6, 0})
				toB, fromB := connect(t, n, a, add(t, n, "b", Link{}))
				toC, fromC := connect(t, n, a, add(t, n, "c", Link{}))
				start := time.Now()
				for _, c := range []stream.Conn{toB, toC} {
					for range 5 {
						if err := c.Send(blockOf(100_000)); err != nil {
							t.Error(err)
						}
					}
					time.Sleep(time.Millisecond)
				}
				about(t, "the first", receive(t, fromB, 5).Sub(start), want.first)
				about(t, "the second", receive(t, fromC, 5).Sub(start), time.Second)
			})
		})
	}
}

// TestDownlinkIsShared: two senders share a downlink, and its queue is bounded.
func TestDownlinkIsShared(t *testing.T) {
	onNetwork(t, NetworkConfig{Queue: 50_000, Segment: 10_000}, func(t *testing.T, n *Network) {
		c := add(t, n, "c", Link{0, 1e6})
		a, fromA := connect(t, n, add(t, n, "a", Link{1e9, 0}), c)
		b, fromB := connect(t, n, add(t, n, "b", Link{1e9, 0}), c)
		start := time.Now()
		send(a, 50, blockOf(10_000))
		send(b, 50, blockOf(10_000))
		time.Sleep(200 * time.Millisecond)
		if sent := n.Sent("a") + n.Sent("b"); sent > 290_000 {
			t.Errorf("%d bytes were sent in 200 ms to a host that takes 200000", sent)
		}
		last := receive(t, fromA, 50)
		if other := receive(t, fromB, 50); last.Sub(start) < 900*time.Millisecond || other.Sub(start) > 1100*time.Millisecond {
			t.Errorf("%v and %v, want a second each", last.Sub(start), other.Sub(start))
		}
	})
}

// TestSmallMessagesOvertake: a small message waits for one segment of another edge, in plain queues for all that is before it.
func TestSmallMessagesOvertake(t *testing.T) {
	for name, want := range map[string]struct {
		fifo bool
		took time.Duration
	}{"fair": {false, 10 * time.Millisecond}, "plain": {true, 500 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			onNetwork(t, NetworkConfig{FIFO: want.fifo, Buffer: 1 << 20, Segment: 10_000}, func(t *testing.T, n *Network) {
				a := add(t, n, "a", Link{1e6, 0})
				toB, _ := connect(t, n, a, add(t, n, "b", Link{}))
				toC, fromC := connect(t, n, a, add(t, n, "c", Link{}))
				start := time.Now()
				if err := toB.Send(blockOf(500_000)); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
				if err := toC.Send(stream.Message{Kind: stream.KindAck}); err != nil {
					t.Error(err)
				}
				about(t, "an acknowledgement", receive(t, fromC, 1).Sub(start), want.took)
			})
		})
	}
}

// TestWindow: a receiver that takes nothing costs its sender a bounded number of bytes.
func TestWindow(t *testing.T) {
	onNetwork(t, NetworkConfig{Window: 100_000, Segment: 10_000, Buffer: 10_000}, func(t *testing.T, n *Network) {
		near, far := connect(t, n, add(t, n, "a", Link{}), add(t, n, "b", Link{}))
		send(near, 50, blockOf(9_900))
		time.Sleep(time.Second)
		if sent := n.Sent("a"); sent < 90_000 || sent > 110_000 {
			t.Errorf("%d bytes were sent to a host that takes none", sent)
		}
		receive(t, far, 50)
	})
}

// TestLoss: what is lost comes later, in order, and the same with the same seed.
func TestLoss(t *testing.T) {
	times := func(seed uint64) (list []time.Duration) {
		onNetwork(t, NetworkConfig{Loss: 0.2, Timeout: time.Second, Seed: seed}, func(t *testing.T, n *Network) {
			near, far := connect(t, n, add(t, n, "a", Link{1e6, 0}), add(t, n, "b", Link{}))
			start := time.Now()
			send(near, 20, blockOf(10_000))
			for range 20 {
				list = append(list, receive(t, far, 1).Sub(start))
			}
		})
		return list
	}
	first, same, other := times(1), times(1), times(2)
	if !slices.Equal(first, same) || slices.Equal(first, other) {
		t.Errorf("with one seed %v and %v, with another one %v", first, same, other)
	}
	if last := first[19]; last < time.Second {
		t.Errorf("nothing was lost: all came after %v", last)
	}
}

// TestUnreachable: what is sent while the other side cannot be reached comes when it can, and edges stay.
func TestUnreachable(t *testing.T) {
	for name, cut := range map[string]func(n *Network) (heal func()){
		"receiver stalls": func(n *Network) func() { n.Stall("b", true); return func() { n.Stall("b", false) } },
		"sender stalls":   func(n *Network) func() { n.Stall("a", true); return func() { n.Stall("a", false) } },
		"split": func(n *Network) func() {
			n.Split(func(id stream.PeerID) int { return int(id[0]) })
			return n.Heal
		},
	} {
		t.Run(name, func(t *testing.T) {
			onNetwork(t, NetworkConfig{DialTimeout: 2 * time.Second}, func(t *testing.T, n *Network) {
				a, b := add(t, n, "a", Link{1e6, 1e6}), add(t, n, "b", Link{1e6, 1e6})
				near, far := connect(t, n, a, b)
				start := time.Now()
				send(near, 1, stream.Message{Kind: stream.KindBusy}) // on its way
				time.Sleep(100 * time.Microsecond)
				heal := cut(n)
				send(near, 3, blockOf(1000))
				if _, err := n.Dial(context.Background(), "a", "b"); !errors.Is(err, blockfmt.ErrTransient) {
					t.Errorf("dial: %v", err)
				}
				about(t, "a dial in vain", time.Since(start), 2*time.Second)
				if n.Reaches("a", "b") || n.Reaches("b", "a") {
					t.Error("they reach each other")
				}
				heal()
				about(t, "the messages", receive(t, far, 4).Sub(start), 2*time.Second)
				if !n.Reaches("a", "b") {
					t.Error("they do not reach each other")
				}
			})
		})
	}
}

// TestCrash: edges of a host that ends break at both ends, and it refuses connections until something runs there again.
func TestCrash(t *testing.T) {
	onNetwork(t, NetworkConfig{}, func(t *testing.T, n *Network) {
		a, b := add(t, n, "a", Link{1e6, 1e6}), add(t, n, "b", Link{1e6, 1e6})
		near, far := connect(t, n, a, b)
		send(near, 100, blockOf(100_000))
		receive(t, far, 1)
		n.Crash("b")
		if _, err := far.Receive(nil); err != io.EOF {
			t.Errorf("the host that ended receives: %v", err)
		}
		if _, err := near.Receive(nil); err != io.EOF {
			t.Errorf("the other host receives: %v", err)
		}
		if err := near.Send(blockOf(1)); err == nil {
			t.Error("the other host can send")
		}
		start := time.Now()
		if _, err := n.Dial(context.Background(), "a", "b"); !errors.Is(err, blockfmt.ErrTransient) || time.Since(start) > time.Millisecond {
			t.Errorf("dial: %v after %v", err, time.Since(start))
		}
		if _, err := n.Dial(context.Background(), "a", "nobody"); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("dial of nobody: %v", err)
		}
		if _, err := n.Dial(context.Background(), "b", "a"); !errors.Is(err, blockfmt.ErrTransient) {
			t.Errorf("dial by nobody: %v", err)
		}
		connect(t, n, a, add(t, n, "b", Link{1e6, 1e6}))
		near.Close()
		far.Close()
		if ends := n.Edges(); ends != 2 {
			t.Errorf("%d ends of edges are open", ends)
		}
	})
}

// TestDialTakesTrips: the first edge between two hosts needs three round trips, a later one needs one.
func TestDialTakesTrips(t *testing.T) {
	onNetwork(t, NetworkConfig{Delay: 10 * time.Millisecond}, func(t *testing.T, n *Network) {
		a, b := add(t, n, "a", Link{}), add(t, n, "b", Link{})
		for _, want := range []time.Duration{60 * time.Millisecond, 20 * time.Millisecond} {
			start := time.Now()
			connect(t, n, a, b)
			about(t, "dial", time.Since(start), want)
		}
	})
}

// TestAfter: what is to happen at one time happens in the order of keys, whoever asked first.
func TestAfter(t *testing.T) {
	onNetwork(t, NetworkConfig{}, func(t *testing.T, n *Network) {
		var order []int
		for _, key := range []int{3, 1, 2} {
			n.After(time.Second, uint64(key), func() { order = append(order, key) })
		}
		n.After(time.Millisecond, 9, func() { order = append(order, 9) })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !slices.Equal(order, []int{9, 1, 2, 3}) {
			t.Errorf("order %v", order)
		}
	})
}
