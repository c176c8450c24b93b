package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// The addresses inside a lab. Labs do not see each other, so all use the same ones.
const (
	prefixBits = 16
	maxHosts   = 250
)

var (
	registryAddr  = netip.AddrFrom4([4]byte{10, 99, 0, 1})
	schedulerAddr = netip.AddrFrom4([4]byte{10, 99, 0, 2})
)

func hostAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 1, byte(i)}) }

// network is a switch, a namespace of its own with a bridge in it, and the links of the hosts. Everything of it is inside its
// namespaces: with them it is gone.
type network struct {
	id    string
	ports []*port
}

// port is a host's place in the network: its namespace, where its end of the link is eth0, and the switch, where the other
// end has the host's name.
type port struct {
	net  *network
	name string
	addr netip.Addr
	link Link
}

func (n *network) add(name string, addr netip.Addr, link Link) *port {
	p := &port{net: n, name: name, addr: addr, link: link}
	n.ports = append(n.ports, p)
	return p
}

func (n *network) namespace(name string) namespace { return namespace(n.id + "-" + name) }
func (n *network) hub() namespace                  { return n.namespace("switch") }
func (p *port) namespace() namespace               { return p.net.namespace(p.name) }

// up makes the network.
func (n *network) up(ctx context.Context) error {
	var namespaces, hub strings.Builder
	fmt.Fprintf(&namespaces, "netns add %s\n", n.hub())
	fmt.Fprintf(&hub, "link set lo up\n")
	for _, p := range n.ports {
		fmt.Fprintf(&namespaces, "netns add %s\n", p.namespace())
		fmt.Fprintf(&hub, "link add %s type veth peer name eth0 netns %s\n", p.name, p.namespace())
	}
	if _, err := iproute(ctx, "ip", namespaces.String(), "-batch", "-"); err != nil {
		return err
	}
	if err := n.tune(); err != nil {
		return err
	}
	if err := n.hub().batch(ctx, "ip", hub.String()); err != nil {
		return err
	}
	for _, p := range n.ports {
		if err := p.up(ctx); err != nil {
			return err
		}
	}
	return n.connect(ctx, n.ports)
}

func (n *network) tune() error {
	if err := n.hub().tune(); err != nil {
		return err
	}
	for _, p := range n.ports {
		if err := p.namespace().tune(); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if p.link.Congestion == "" {
			continue
		}
		if err := p.namespace().setCongestion(p.link.Congestion); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// up gives the host's end its address, and both ends their rates.
func (p *port) up(ctx context.Context) error {
	commands := fmt.Sprintf("link set lo up\naddr add %s/%d dev eth0\nlink set eth0 up\n", p.addr, prefixBits)
	if err := p.namespace().batch(ctx, "ip", commands); err != nil {
		return err
	}
	return p.shape(ctx, p.link)
}

// shape changes the rates and queues of the link, also while it is in use; what waits in it is lost.
func (p *port) shape(ctx context.Context, link Link) error {
	if err := link.validate(); err != nil {
		return fmt.Errorf("link of %s: %w", p.name, err)
	}
	p.link.Up, p.link.Down, p.link.Queue = link.Up, link.Down, link.Queue
	return errors.Join(
		p.namespace().batch(ctx, "tc", shape("eth0", link.Up, link.Queue)),
		p.net.hub().batch(ctx, "tc", shape(p.name, link.Down, link.Queue)))
}

// connect makes one bridge for each group of ports, so that a port reaches those of its group only, and removes the bridges of
// before. A port in no group reaches nobody. The state of the links, as a host sees it, does not change.
func (n *network) connect(ctx context.Context, groups ...[]*port) error {
	var commands strings.Builder
	for _, p := range n.ports {
		fmt.Fprintf(&commands, "link set %s up nomaster\n", p.name)
	}
	old, err := n.bridges(ctx)
	if err != nil {
		return err
	}
	for _, b := range old {
		fmt.Fprintf(&commands, "link del %s\n", b)
	}
	for i, group := range groups {
		fmt.Fprintf(&commands, "link add bridge%d type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set bridge%d up\n", i, i)
		for _, p := range group {
			fmt.Fprintf(&commands, "link set %s master bridge%d\n", p.name, i)
		}
	}
	return n.hub().batch(ctx, "ip", commands.String())
}

// cut takes one port off its bridge.
func (p *port) cut(ctx context.Context) error {
	return p.net.hub().batch(ctx, "ip", fmt.Sprintf("link set %s nomaster\n", p.name))
}

func (n *network) bridges(ctx context.Context) ([]string, error) {
	found, err := n.links(ctx, "type", "bridge")
	names := make([]string, len(found))
	for i, l := range found {
		names[i] = l.Name
	}
	return names, err
}

// Traffic is what went over a host's link since Up: bytes of Ethernet frames with their headers, after shaping.
type Traffic struct{ Sent, Received int64 }

// Sub returns the traffic since before.
func (t Traffic) Sub(before Traffic) Traffic {
	return Traffic{t.Sent - before.Sent, t.Received - before.Received}
}

// traffic returns the counters of all links by host, all read at nearly the same moment.
func (n *network) traffic(ctx context.Context) (map[string]Traffic, error) {
	found, err := n.links(ctx, "type", "veth")
	if err != nil {
		return nil, err
	}
	counters := map[string]Traffic{}
	for _, l := range found {
		counters[l.Name] = Traffic{Sent: l.Stats.Rx.Bytes, Received: l.Stats.Tx.Bytes} // the switch's end: its rx is the host's tx
	}
	return counters, nil
}

type linkInfo struct {
	Name  string `json:"ifname"`
	Stats struct {
		Rx, Tx struct{ Bytes int64 }
	} `json:"stats64"`
}

// links asks ip for devices of the switch.
func (n *network) links(ctx context.Context, filter ...string) (found []linkInfo, err error) {
	out, err := iproute(ctx, "ip", "", append([]string{"-n", string(n.hub()), "-j", "-s", "link", "show"}, filter...)...)
	if err != nil || len(strings.TrimSpace(string(out))) == 0 { // no such device
		return nil, err
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("ip link show: %w", err)
	}
	return found, nil
}
