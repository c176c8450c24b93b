package stream

import (
	"errors"
	"io"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// libp2pNetwork is the part of libp2p that a Host stands on.
type libp2pNetwork struct {
	swarm   *swarm.Swarm
	closers []io.Closer // in the order of closing
}

func (n *libp2pNetwork) close() error {
	var errs []error
	for _, c := range n.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// listen builds the network and listens.
func (h *Host) listen() (*libp2pNetwork, error) {
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	n := &libp2pNetwork{closers: []io.Closer{store}}
	if err := h.build(n, store); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (h *Host) build(n *libp2pNetwork, store peerstore.Peerstore) error {
	if err := store.AddPrivKey(h.self, h.key); err != nil {
		return err
	}
	if err := store.AddPubKey(h.self, h.key.GetPublic()); err != nil {
		return err
	}
	gate := gater{h.cfg.Node}
	h.guests = newGuests(h.cfg.Node.cfg)
	bus := eventbus.NewBus(eventbus.WithMetricsTracer(nil))
	sw, err := swarm.NewSwarm(h.self, store, bus, swarm.WithConnectionGater(gate), swarm.WithResourceManager(h.guests), swarm.WithDialRanker(swarm.NoDelayDialRanker))
	if err != nil {
		return err
	}
	n.swarm = sw
	n.closers = []io.Closer{sw, store}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: h.muxer()}}
	security, err := libp2ptls.New(libp2ptls.ID, h.key, muxers)
	if err != nil {
		return err
	}
	up, err := upgrader.New([]sec.SecureTransport{sealed{security}}, muxers, nil, h.guests, gate, upgrader.WithAcceptTimeout(h.cfg.Node.cfg.Handshake))
	if err != nil {
		return err
	}
	transport, err := tcp.NewTCPTransport(up, h.guests, nil, tcp.DisableReuseport())
	if err != nil {
		return err
	}
	if err := sw.AddTransport(transport); err != nil {
		return err
	}
	if len(h.cfg.Listen) == 0 {
		return nil
	}
	return sw.Listen(toMultiaddrs(h.cfg.Listen)...)
}

// muxer returns yamux, set up for a few long-lived streams.
func (h *Host) muxer() *yamux.Transport {
	t := *yamux.DefaultTransport
	t.MaxStreamWindowSize = h.cfg.Window
	t.MaxIncomingStreams = 4 * uint32(h.cfg.Node.cfg.Edges)
	t.MaxMessageSize = 64 << 10
	return &t
}

// gater refuses connections with peers whom the node does not allow, when their identity is established.
type gater struct{ node *Node }

func (g gater) allows(p peer.ID) bool { return g.node.Allowed(PeerID(p.String())) == nil }

func (g gater) InterceptPeerDial(p peer.ID) bool             { return g.allows(p) }
func (g gater) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }
func (g gater) InterceptAccept(network.ConnMultiaddrs) bool  { return true }
func (g gater) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	visitOf(c).await(c)
	return true, 0
}
func (g gater) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.allows(p)
}

func toAddrPort(a ma.Multiaddr) (netip.AddrPort, error) {
	addr, err := manet.ToNetAddr(a)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(addr.String())
}
