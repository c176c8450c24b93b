package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// cluster is the agent's part in the function trees: it feeds other agents and is fed by them, as the schedulers say.
type cluster struct {
	cfg    Config
	store  *cache.Cache
	origin func(origin) (blockfmt.Source, error) // the registry, verified
	ahead  ahead
	inUse  func(image digest.Digest) bool
	node   *stream.Node
	host   *stream.Host
	client *api.Client
	places places

	made     *made     // by agents of the cluster
	holdings *holdings // made here, for the others

	mu     sync.Mutex
	closed bool
	trees  map[digest.Digest]*membership // by the block image's manifest
}

// places are where the agent is in trees, as schedulers say. An api.Client has them.
type places interface {
	// Enter asks for a place in the tree of an image, until Leave.
	Enter(image digest.Digest, ref string, total []int)
	Leave(image digest.Digest)
	// Stripes is 0 while no scheduler has answered; WaitStripes waits for the first one to do so or not.
	Stripes() int
	WaitStripes(ctx context.Context) int
	// Reachable says whether some scheduler may answer now.
	Reachable() bool
	// Beat has the schedulers told soon how the agent is.
	Beat()
}

// credentials prove to other agents that this one is of the cluster, and judge their proofs. An api.Client has them.
type credentials interface {
	Credential() []byte
	Admit(peer string, credential []byte) error
}

// grace is how long a read, and what is needed to mount an image, waits for the scheduler to say where the agent's place in the tree is.
const grace = 2 * time.Second

// maxEdges bounds the edges that one other agent may have here as a child: in each image two for each stripe, and as many again when its
// places change.
const maxEdges = 2048

// ban is how long a peer that was cut off is refused.
const ban = 10 * time.Minute

// newCluster returns the agent's part in a cluster, nil if no scheduler is configured. What schedulers want run, work runs, unless it is nil.
func newCluster(cfg Config, store *cache.Cache, registry func(origin) (blockfmt.Source, error), inUse func(digest.Digest) bool, work *executor.Executor) (*cluster, error) {
	if len(cfg.Schedulers) == 0 {
		return nil, nil
	}
	key, err := identity(filepath.Join(cfg.Root, "peer.key"))
	if err != nil {
		return nil, err
	}
	token := ""
	if cfg.JoinTokenFile != "" {
		text, err := os.ReadFile(cfg.JoinTokenFile)
		switch {
		case errors.Is(err, os.ErrNotExist): // who has joined needs none
			cfg.Log.Warn("no join token", "err", err)
		case err != nil:
			return nil, fmt.Errorf("join token: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	c := &cluster{cfg: cfg, store: store, origin: registry, ahead: aheadOf(cfg), inUse: inUse, trees: map[digest.Digest]*membership{}}
	client := api.ClientConfig{Schedulers: cfg.Schedulers, Token: token, Dir: filepath.Join(cfg.Root, "cluster"), Key: key,
		Handler: c, Heartbeat: c.heartbeat, Log: cfg.Log}
	if work != nil {
		client.Work = work.Handler()
	}
	c.client, err = api.NewClient(client)
	if err != nil {
		return nil, err
	}
	c.places = c.client
	return c, c.connect(key, c.client)
}

// connect makes what peers reach. It does no I/O.
func (c *cluster) connect(key ed25519.PrivateKey, proofs credentials) (err error) {
	c.node, err = stream.NewNode(stream.NodeConfig{Authorize: func(stream.PeerID) error { return nil }, Report: c.cutOff, Edges: maxEdges, Ban: ban, Measured: c.places.Beat, Verify: blockfmt.VerifyLength,
		Up: int64(c.cfg.UploadLimit), Down: int64(c.cfg.DownloadLimit)})
	if err != nil {
		return err
	}
	c.holdings = newHoldings(filepath.Join(c.cfg.Root, "converted"), c.node.Upload, c.cfg.Log)
	c.host, err = stream.NewHost(stream.HostConfig{Node: c.node, Key: key, Listen: []netip.AddrPort{c.cfg.Listen},
		Services: map[string]stream.Service{convertedProtocol: c.holdings.serve}, Credential: proofs.Credential, Admit: func(p stream.PeerID, credential []byte) error { return proofs.Admit(string(p), credential) }, Failed: func(p stream.PeerID, err error) {
			c.cfg.Log.Debug("a child's edge ended", "peer", p, "err", err)
		}})
	return err
}

// identity returns the agent's key, which is made when there is none.
func identity(path string) (ed25519.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return key, writeBytes(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file: remove it to join as a new agent", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s holds no ed25519 key: remove it to join as a new agent", path)
	}
	return key, nil
}

// run serves children and talks to the schedulers until ctx ends.
func (c *cluster) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.host.Run(ctx) })
	g.Go(func() error {
		select {
		case <-c.host.Ready():
		case <-ctx.Done():
			return nil
		}
		if len(c.address().Addrs) == 0 {
			return nil // host.Run says why
		}
		c.cfg.Log.Info("feeds others", "peer", c.host.ID(), "addresses", c.address().Addrs)
		if err := c.client.Run(ctx); err != nil {
			c.cfg.Log.Error("the agent is in no cluster and reads registries only", "err", err)
		}
		return nil
	})
	g.Go(func() error { c.leaveIdle(ctx); return nil })
	g.Go(func() error { return c.holdings.run(ctx, c.client, c.address) })
	return g.Wait()
}

// close leaves all trees; what was read through them comes from the registry from now on.
func (c *cluster) close() error {
	c.mu.Lock()
	c.closed = true
	trees := c.trees
	c.trees = nil
	c.mu.Unlock()
	var err error
	for _, t := range trees {
		err = errors.Join(err, t.close())
	}
	return err
}

// address returns where others reach this agent.
func (c *cluster) address() api.Peer {
	at := c.host.Address()
	p := api.Peer{ID: string(at.ID), Addrs: c.cfg.Advertise}
	if len(p.Addrs) > 0 {
		return p
	}
	p.Addrs = slices.DeleteFunc(slices.Clone(at.Addrs), func(a netip.AddrPort) bool {
		return a.Addr().IsLoopback() || a.Addr().IsLinkLocalUnicast()
	})
	if len(p.Addrs) == 0 {
		p.Addrs = at.Addrs // all agents on one machine
	}
	return p
}

// tree returns the agent's membership in the tree of an image or a plain blob, and enters it if it is not in yet. ref is what people
// call it.
func (c *cluster) tree(image digest.Digest, ref string) (*membership, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("agent is closing: %w", blockfmt.ErrTransient)
	}
	t := c.trees[image]
	if t == nil {
		t = &membership{cluster: c, image: image, placed: make(chan struct{}), positions: map[int]api.Position{}, failed: map[string]bool{}, cutOff: map[string]time.Time{}}
		c.trees[image] = t
		c.places.Enter(image, ref, nil)
	}
	t.used = time.Now()
	return t, nil
}

// source returns the Source of an image's blocks: through its tree, or alone where the agent is not in it.
func (c *cluster) source(im *image, alone blockfmt.Source) (blockfmt.Source, error) {
	registry, err := c.origin(im.origin)
	if err != nil {
		return nil, err
	}
	t, err := c.tree(im.artifact.Digest, im.origin.Ref)
	if err != nil {
		return nil, err
	}
	order, ahead := c.ahead.order(im)
	_, err = t.openBody(&content{indexes: im.indexes, store: c.store, registry: registry, order: order, ahead: ahead})
	return route{t, alone}, err
}

// placed returns a channel that is closed when the agent has its place in an image's tree; nil if it is not to get one.
func (c *cluster) placed(image digest.Digest) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.trees[image]; t != nil {
		return t.placed
	}
	return nil
}

// through implements discovery.through.
func (c *cluster) through(ctx context.Context, o origin, image digest.Digest, m ocispec.Manifest, from place) (place, error) {
	if o.Layout != "" {
		return from, nil
	}
	t, err := c.tree(image, o.Ref)
	if err != nil {
		return nil, err
	}
	return t.openHead(ctx, m, from)
}

// Position implements api.Handler.
func (c *cluster) Position(p api.Position) {
	c.mu.Lock()
	t := c.trees[p.Image]
	c.mu.Unlock()
	if t != nil {
		t.place(p)
	}
}

// Revoked implements api.Handler.
func (c *cluster) Revoked(peers []string) {
	for _, p := range peers {
		if err := c.host.Disconnect(stream.PeerID(p)); err != nil {
			c.cfg.Log.Warn("revoked peer not disconnected", "peer", p, "err", err)
		}
	}
}

// cutOff notes a peer that sent wrong bytes or broke the protocol, for the scheduler to know.
func (c *cluster) cutOff(cut stream.CutOff) {
	c.cfg.Log.Warn("peer is cut off", "peer", cut.Peer, "image", cut.Image, "err", cut.Reason)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.trees {
		if t.has(cut.Image) {
			t.cutsOff(cut.Peer)
		}
	}
}

// heartbeat says how the agent is.
func (c *cluster) heartbeat() api.Heartbeat {
	h := api.Heartbeat{Agent: c.address(), Zone: c.cfg.Zone, Budget: c.cfg.Children}
	uplink, waiting := c.node.Uplink()
	h.Uplink = uplink
	for _, peer := range waiting[:min(len(waiting), api.MaxNamed)] {
		h.Waiting = append(h.Waiting, string(peer))
	}
	h.Sent, h.Received = c.node.Carried()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.trees {
		m, children := t.report()
		h.Images = append(h.Images, m)
		h.Children += children
	}
	return h
}

// forget leaves the tree of an image that was removed, as soon as leaveIdle looks.
func (c *cluster) forget(image digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.trees[image]; t != nil {
		t.used = time.Time{}
	}
}

// leaveIdle leaves the trees of images that were not in use for a while.
func (c *cluster) leaveIdle(ctx context.Context) {
	tick := time.NewTicker(max(c.cfg.TreeIdle.Duration/10, time.Second))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, t := range c.idle() {
			c.end(t, "it is not in use")
		}
	}
}

// leave leaves a tree at once.
func (c *cluster) leave(image digest.Digest, why string) {
	c.mu.Lock()
	t := c.trees[image]
	delete(c.trees, image)
	c.mu.Unlock()
	if t != nil {
		c.end(t, why)
	}
}

// end leaves a tree that was taken out of trees.
func (c *cluster) end(t *membership, why string) {
	c.places.Leave(t.image)
	c.cfg.Log.Info("tree left", "image", t.image, "why", why)
	if err := t.close(); err != nil {
		c.cfg.Log.Warn("tree left with an error", "image", t.image, "err", err)
	}
}

// idle takes out the memberships that nobody needs.
func (c *cluster) idle() (gone []*membership) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for image, t := range c.trees {
		if c.inUse(image) || t.using.Load() > 0 {
			t.used = time.Now()
		}
		if time.Since(t.used) > c.cfg.TreeIdle.Duration {
			delete(c.trees, image)
			gone = append(gone, t)
		}
	}
	return gone
}

// branch is the agent in the tree with one part of an image: its head, or its blocks.
type branch struct {
	*member.Member
	reads      *fetch.Coalescer   // of this node
	coalescers []*fetch.Coalescer // the same, what children ask for, and what is asked of the registry
}

func (b *branch) close() error {
	err := b.Member.Close()
	for _, c := range b.coalescers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// branch joins with a part of an image, or with a plain blob.
func (c *cluster) branch(image *stream.Image, part *content, failed func(stream.PeerID, error)) (*branch, error) {
	b := new(branch)
	wait := grace
	if !c.places.Reachable() {
		wait = 0
	}
	once := fetch.Coalesced(part.registry)
	b.coalescers = append(b.coalescers, once)
	var err error
	b.Member, err = member.New(member.Config{
		Node: c.node, Image: image, Attach: c.host.Attach, Store: part.store, Recycle: true, Origin: once, Order: part.order, Ahead: part.ahead,
		Workers: c.cfg.Connections, Grace: wait, Failed: failed, Ladder: stream.LadderConfig{Verify: blockfmt.VerifyLength},
		Stack: func(store blockfmt.Store, next blockfmt.Source) blockfmt.Source {
			reads := fetch.Coalesced(fetch.Cached(store, next))
			b.coalescers = append(b.coalescers, reads)
			if b.reads == nil { // the node's own stack is made first
				b.reads = reads
			}
			return fetch.Deadline(reads, c.cfg.ReadTimeout.Duration)
		},
	})
	return b, err
}
