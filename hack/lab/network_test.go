package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// between fails the test unless a rate that was measured on this machine, which others use too, can be that of a link: what
// headers leave of it, at most.
func between(t *testing.T, what string, got, link Rate) {
	t.Helper()
	if float64(got) < 0.75*float64(link) || float64(got) > 1.02*float64(link) {
		t.Errorf("%s: %.1f Mbit/s over a link of %v", what, float64(got)/float64(Mbit), link)
	}
}

func TestLinks(t *testing.T) {
	l := up(t, Config{
		Hosts: 3, Link: Link{Up: 100 * Mbit, Down: 100 * Mbit, Congestion: "cubic"},
		Links: map[string]Link{"h3": {Up: 10 * Mbit, Down: 40 * Mbit, Congestion: "reno"}},
	})
	h1, h2, h3 := l.Hosts()[0], l.Hosts()[1], l.Hosts()[2]
	for _, c := range []struct {
		from, to *Host
		want     Rate
	}{{h1, h2, 100 * Mbit}, {h3, h1, 10 * Mbit}, {h1, h3, 40 * Mbit}, {l.Registry(), h2, 100 * Mbit}} {
		before, err := l.Traffic(t.Context())
		must(t, err)
		rate, err := l.Throughput(t.Context(), c.from, c.to, time.Second)
		must(t, err)
		between(t, c.from.Name+" to "+c.to.Name, rate, c.want)
		after, err := l.Traffic(t.Context())
		must(t, err)
		counted(t, c.from, c.to, before, after, rate)
	}
	must(t, h1.Shape(t.Context(), Link{Up: 20 * Mbit, Down: 100 * Mbit}))
	rate, err := l.Throughput(t.Context(), h1, h2, time.Second)
	must(t, err)
	between(t, "after Shape", rate, 20*Mbit)
	used, err := l.Congestion()
	if err != nil || !slices.Equal(used, []string{"cubic", "reno"}) {
		t.Errorf("congestion control: %v, %v", used, err)
	}
	if err := h1.Shape(t.Context(), Link{Up: 1}); err == nil || h1.Link().Up != 20*Mbit {
		t.Errorf("a rate of 1 bit/s: %v, link %+v", err, h1.Link())
	}
}

// counted checks that what was sent for a second was counted at both ends, and nowhere else.
func counted(t *testing.T, from, to *Host, before, after map[string]Traffic, rate Rate) {
	t.Helper()
	least := int64(rate.Bytes() / 2)
	for name, traffic := range after {
		d := traffic.Sub(before[name])
		if (d.Sent > least) != (name == from.Name) || (d.Received > least) != (name == to.Name) {
			t.Errorf("%s to %s at %.1f Mbit/s: %s sent %d bytes and received %d", from.Name, to.Name, float64(rate)/float64(Mbit), name, d.Sent, d.Received)
		}
	}
	own, err := from.Traffic(t.Context())
	if err != nil || own.Sent < after[from.Name].Sent {
		t.Errorf("%s sent %d, then %d, %v", from.Name, after[from.Name].Sent, own.Sent, err)
	}
}

// echo is a connection between two hosts to something that sends back what it gets.
type echo struct {
	net.Conn
	next byte
}

func newEcho(t *testing.T, from, to *Host) *echo {
	t.Helper()
	listener, err := to.Listen(netip.AddrPortFrom(to.Addr, 0).String())
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	conn, err := from.DialContext(t.Context(), "tcp4", listener.Addr().String())
	must(t, err)
	served, err := listener.Accept()
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(served, served)
	}()
	t.Cleanup(func() {
		conn.Close()
		served.Close()
		<-done
	})
	return &echo{Conn: conn}
}

// try sends a byte and waits for it, or for an earlier one, to come back.
func (e *echo) try(timeout time.Duration) error {
	e.next++
	if err := e.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := e.Write([]byte{e.next}); err != nil {
		return err
	}
	for got := []byte{0}; got[0] != e.next; {
		if _, err := e.Read(got); err != nil {
			return err
		}
	}
	return nil
}

// silent is long enough that an answer would have come.
const silent = 300 * time.Millisecond

func TestPartition(t *testing.T) {
	l := up(t, Config{Hosts: 4})
	h := l.Hosts()
	near, far := newEcho(t, h[0], h[1]), newEcho(t, h[0], h[2])
	check := func(when string, conn *echo, reached bool) {
		t.Helper()
		if reached {
			eventually(t, 20*time.Second, when, func() error { return conn.try(2 * time.Second) })
		} else if err := conn.try(silent); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: an answer, or %v", when, err)
		}
	}
	check("at first, near", near, true)
	check("at first, far", far, true)
	must(t, l.Partition(t.Context(), h[:2], append([]*Host{l.Registry()}, h[2:]...)))
	check("in the partition, near", near, true)
	check("in the partition, far", far, false)
	if rate, err := l.Throughput(t.Context(), l.Registry(), h[3], 100*time.Millisecond); err != nil || rate == 0 {
		t.Errorf("in the other half: %v, %v", rate, err)
	}
	must(t, l.Heal(t.Context()))
	check("healed, near", near, true)
	check("healed, far", far, true)
	must(t, h[1].StallLink(t.Context()))
	check("with h2's link stalled, near", near, false)
	check("with h2's link stalled, far", far, true)
	must(t, l.Heal(t.Context()))
	check("healed again, near", near, true)
	if err := l.Partition(t.Context(), h[:2], h[1:]); err == nil {
		t.Error("a host can be in two groups")
	}
}

// Two labs have the same addresses, and neither knows of the other.
func TestTwoLabs(t *testing.T) {
	labs := []*Lab{up(t, Config{Hosts: 2}), up(t, Config{Hosts: 2, Link: Link{Up: 50 * Mbit, Down: 50 * Mbit}})}
	for i, l := range labs {
		if swept, err := Sweep(t.Context(), "", l.State().ID, true); err != nil || len(swept) != 0 {
			t.Errorf("lab %d was removed while it is used: %v, %v", i, swept, err)
		}
		before, err := labs[1-i].Traffic(t.Context())
		must(t, err)
		if _, err := l.Throughput(t.Context(), l.Hosts()[0], l.Hosts()[1], 300*time.Millisecond); err != nil {
			t.Error(err)
		}
		after, err := labs[1-i].Traffic(t.Context())
		must(t, err)
		for name := range after {
			if d := after[name].Sub(before[name]); d.Sent+d.Received > 1000 { // ARP of its own at most
				t.Errorf("lab %d counted %+v of lab %d at %s", 1-i, d, i, name)
			}
		}
	}
	third, err := Up(t.Context(), Config{Hosts: 1, Xylem: xylem()})
	must(t, err)
	must(t, third.Down())
	if _, err := labs[0].Throughput(t.Context(), labs[0].Hosts()[0], labs[0].Hosts()[1], 100*time.Millisecond); err != nil {
		t.Errorf("after another lab is down: %v", err)
	}
}

// Nothing leaves a lab: not even to the machine that it is on.
func TestNoWayOut(t *testing.T) {
	l := up(t, Config{Hosts: 1})
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	for _, address := range []string{listener.Addr().String(), "192.0.2.1:80", "10.98.0.1:80"} {
		conn, err := l.Hosts()[0].DialContext(t.Context(), "tcp4", address)
		if err == nil {
			conn.Close()
			t.Error(fmt.Errorf("a host reaches %s", address))
		}
	}
}
