package stream

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	mstream "github.com/multiformats/go-multistream"

	"github.com/xylem-project/xylem/blockfmt"
)

// HostConfig of a Host. Node and Key are needed.
type HostConfig struct {
	Node *Node
	// Key is the agent's identity: its PeerID is made of the public half.
	Key ed25519.PrivateKey
	// Listen are the TCP addresses for children. Port 0 takes a free one. Default: none, the host only attaches to others.
	Listen []netip.AddrPort
	// Credential returns what shows that this agent belongs to the cluster, such as a certificate of the cluster's authority
	// for its PeerID: at most 4 KiB, which do not change any more. It is asked for each edge, and must not block. Default: none.
	Credential func() []byte
	// Admit says why a peer may not have an edge with this node, in either direction, of its credential, which may be empty
	// or garbage; that the peer has its PeerID's key was proved already. It is asked for each edge, before anything that the
	// peer has sent is looked at. The peer is told the text of the error. Safe for concurrent use. Default: all are admitted
	// whom the Node allows.
	Admit func(peer PeerID, credential []byte) error
	// Window is how many bytes of one stream a receiver takes ahead of its reader. Default 16 MiB.
	Window uint32
	// Services serve what else peers may ask for, by the libp2p protocol. Default: none.
	Services map[string]Service
	// Failed is told why an edge with a child ended, if not because the child left. It must not block. Default: nobody is told.
	Failed func(PeerID, error)
}

// Address says where a peer is.
type Address struct {
	ID    PeerID
	Addrs []netip.AddrPort
}

// A Host gives a Node its edges over libp2p: TCP, TLS 1.3 bound to the peers' identities, and yamux, with nothing else of
// libp2p in the way. What others open is bounded. Connections are authenticated both ways, and those of peers whom the Node does not allow are closed
// before any stream is handled. On each stream both sides show their credentials, so that a peer is admitted to the cluster
// before anything that it says is looked at.
type Host struct {
	cfg   HostConfig
	key   crypto.PrivKey
	self  peer.ID
	ready chan struct{} // closed when the network is open, or will never be

	swarm  *swarm.Swarm // set before ready is closed; nil if that failed
	guests *guests      // set before there is a swarm
	mux    *mstream.MultistreamMuxer[protocol.ID]

	mu       sync.Mutex
	closed   bool
	handlers sync.WaitGroup

	serve func(context.Context, Conn, PeerID) error // Node.Serve
}

// NewHost returns a Host that does nothing before Run.
func NewHost(cfg HostConfig) (*Host, error) {
	if cfg.Node == nil {
		return nil, errors.New("stream: HostConfig.Node is missing")
	}
	if cfg.Failed == nil {
		cfg.Failed = func(PeerID, error) {}
	}
	if cfg.Credential == nil {
		cfg.Credential = func() []byte { return nil }
	}
	if cfg.Admit == nil {
		cfg.Admit = func(PeerID, []byte) error { return nil }
	}
	setDefault(&cfg.Window, 16<<20)
	key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("stream: HostConfig.Key: %w", err)
	}
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("stream: HostConfig.Key: %w", err)
	}
	h := &Host{cfg: cfg, key: key, self: self, ready: make(chan struct{}), mux: mstream.NewMultistreamMuxer[protocol.ID](), serve: cfg.Node.Serve}
	h.mux.AddHandler(Protocol, nil)
	for name := range cfg.Services {
		h.mux.AddHandler(protocol.ID(name), nil)
	}
	return h, nil
}

// IDOf returns the PeerID of the agent with this public key.
func IDOf(key ed25519.PublicKey) (PeerID, error) {
	k, err := crypto.UnmarshalEd25519PublicKey(key)
	if err != nil {
		return "", fmt.Errorf("peer ID: %w", err)
	}
	id, err := peer.IDFromPublicKey(k)
	if err != nil {
		return "", fmt.Errorf("peer ID: %w", err)
	}
	return PeerID(id.String()), nil
}

// ID returns the host's own PeerID.
func (h *Host) ID() PeerID { return PeerID(h.self.String()) }

// Ready returns a channel that is closed when Run listens, or has failed.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// Address returns where Run listens; no addresses before Ready.
func (h *Host) Address() Address {
	at := Address{ID: h.ID()}
	select {
	case <-h.ready:
	default:
		return at
	}
	if h.swarm == nil {
		return at
	}
	addrs, _ := h.swarm.InterfaceListenAddresses()
	for _, a := range addrs {
		if ap, err := toAddrPort(a); err == nil {
			at.Addrs = append(at.Addrs, ap)
		}
	}
	return at
}

// Run opens the network and serves children until ctx ends; then it ends all edges and waits for them. It runs once.
func (h *Host) Run(ctx context.Context) error {
	n, err := h.listen()
	if err != nil {
		close(h.ready)
		return fmt.Errorf("stream: %w", err)
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	n.swarm.SetStreamHandler(func(s network.Stream) { h.handle(serving, s) })
	h.swarm = n.swarm
	close(h.ready)
	<-ctx.Done()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	stop()
	err = n.close()
	h.handlers.Wait()
	return err
}

// handle serves a child that opened a stream.
func (h *Host) handle(ctx context.Context, s network.Stream) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		_ = s.Reset()
		return
	}
	h.handlers.Add(1)
	h.mu.Unlock()
	defer h.handlers.Done()
	child := PeerID(s.Conn().RemotePeer().String())
	if !h.guests.enter() {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	follows, err := h.receivePreface(s, child)
	h.guests.leave()
	if err != nil {
		h.refused(s, child, err)
		return
	}
	visitOf(s.Conn()).admit()
	if service := h.cfg.Services[string(follows)]; service != nil {
		h.serveOther(ctx, service, s, child)
		return
	}
	if err := h.serve(ctx, Over(&endable{s, h}), child); err != nil && ctx.Err() == nil {
		h.cfg.Failed(child, err)
	}
}

// endable is a stream whose Close does not wait for the network, which may hang.
type endable struct {
	network.Stream
	host *Host
}

// Close ends calls that are under way at once. What tells the other side goes behind what was written, in its own time.
func (s *endable) Close() error {
	_ = s.SetWriteDeadline(time.Unix(1, 0)) // fails if there is nothing left to end
	err := s.CloseRead()
	s.host.later(func() { _ = s.Stream.Close() })
	return err
}

// later runs what may take its time, before the host ends; at once if that is about to happen, because then the connections
// are closed.
func (h *Host) later(do func()) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		do()
		return
	}
	h.handlers.Add(1)
	h.mu.Unlock()
	go func() {
		defer h.handlers.Done()
		do()
	}()
}

// refused ends the stream of a peer that was not admitted, which has been told why.
func (h *Host) refused(s network.Stream, peer PeerID, err error) {
	h.cfg.Node.counters.Refused.Add(1)
	_ = s.Close()
	if visitOf(s.Conn()).refuse() {
		_ = s.Conn().Close()
	}
	h.cfg.Failed(peer, err)
}

// Attach makes the node a child of the peer at an address. Close the Peer when done.
func (h *Host) Attach(ctx context.Context, s *Share, to Address, at Attachment) (*Peer, error) {
	conn, err := h.dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", to.ID, err)
	}
	return s.Attach(ctx, conn, to.ID, at)
}

// dial opens a stream to a peer and sends the preface. It does not wait for an answer.
func (h *Host) dial(ctx context.Context, to Address) (Conn, error) {
	s, err := h.stream(ctx, to)
	if err != nil {
		return nil, err
	}
	end := &endable{s, h}
	stop := context.AfterFunc(ctx, func() { _ = end.Close() })
	conn, err := h.open(end, to.ID)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = end.Close()
		return nil, err
	}
	return conn, nil
}

// stream opens a stream to a peer, over the connection that there is or a new one.
func (h *Host) stream(ctx context.Context, to Address) (network.Stream, error) {
	if err := h.cfg.Node.Allowed(to.ID); err != nil {
		return nil, err
	}
	id, err := peer.Decode(string(to.ID))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	select {
	case <-h.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if h.swarm == nil {
		return nil, fmt.Errorf("no network: %w", blockfmt.ErrTransient)
	}
	h.swarm.Peerstore().SetAddrs(id, toMultiaddrs(to.Addrs), peerstore.PermanentAddrTTL)
	h.swarm.Backoff().Clear(id) // how often to try is the caller's business
	s, err := h.swarm.NewStream(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	return s, nil
}

// Disconnect closes all connections with a peer, such as one that was revoked, and ends its edges.
func (h *Host) Disconnect(id PeerID) error {
	h.cfg.Node.Drop(id)
	p, err := peer.Decode(string(id))
	if err != nil || h.swarm == nil {
		return err
	}
	return h.swarm.ClosePeer(p)
}

func toMultiaddrs(addrs []netip.AddrPort) []ma.Multiaddr {
	list := make([]ma.Multiaddr, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, toMultiaddr(a))
	}
	return list
}

func toMultiaddr(a netip.AddrPort) ma.Multiaddr {
	ip := "ip6"
	if a.Addr().Is4() {
		ip = "ip4"
	}
	return ma.StringCast(fmt.Sprintf("/%s/%s/tcp/%d", ip, a.Addr().WithZone(""), a.Port()))
}
