// Package fleet knows the agents that take work from this scheduler, and gives it to them.
//
// It stands beside the way of the data, between invocations and the nodes where instances run:
//
//	package invoke --Start, Invoke--> Fleet --api.WorkProtocol--> agent --agent/executor--> instance
//
// Each agent holds one connection to each scheduler, on which the scheduler sends HTTP requests. What a node can run is known from its
// own word; what runs there already is counted here as well, so that a burst of starts does not wait for news between them.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Errors that callers act on.
var (
	// ErrNoRoom says that no node has room for another instance.
	ErrNoRoom = errors.New("no node has room")
	// ErrNoNodes says that no agent takes work.
	ErrNoNodes = errors.New("no agent takes work: start agents with [functions] enabled")
	// ErrLost says that the connection to a node broke. Whether what was asked took place is not known.
	ErrLost = errors.New("node lost")
)

// Observer is told of nodes. Its methods must not block.
type Observer interface {
	// Joined says which instances run on a node, before it gets any work.
	Joined(n *Node, running []api.Instance)
	Lost(n *Node)
}

// Fleet is safe for concurrent use.
type Fleet struct {
	name     string
	every    time.Duration
	log      *slog.Logger
	observer Observer

	mu    sync.Mutex
	nodes map[string]*Node // by peer ID
}

// New returns a Fleet without nodes, which asks them that often how they are, in the name with which the IDs of its instances begin. Observe
// it before it serves any.
func New(name string, poll time.Duration, log *slog.Logger) *Fleet {
	return &Fleet{name: name, every: poll, log: log, nodes: map[string]*Node{}}
}

// Observe has o told of nodes from now on.
func (f *Fleet) Observe(o Observer) { f.observer = o }

// statusTimeout bounds the wait for a node's word about itself.
const statusTimeout = 10 * time.Second

// Serve gives work to the agent at the other end of conn until ctx ends or the connection does, and closes it. Another connection
// of the same agent is closed.
func (f *Fleet) Serve(ctx context.Context, peer string, conn net.Conn) error {
	n, err := newNode(peer, conn)
	if err != nil {
		return err
	}
	defer n.close()
	stop := context.AfterFunc(ctx, n.close)
	defer stop()
	status, err := n.ask(ctx, f.name)
	if err == nil {
		err = n.open(ctx)
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", peer, err)
	}
	defer n.lane.Close() //nolint:errcheck // it is over
	f.enter(n, status)
	defer f.leave(n)
	f.log.Info("agent takes work", "peer", peer, "memory", status.Memory, "cpu", status.CPU, "instances", len(status.Instances))
	return f.poll(ctx, n)
}

// enter makes a node known, in the place of an earlier one of the same agent.
func (f *Fleet) enter(n *Node, status api.NodeStatus) {
	f.mu.Lock()
	former := f.nodes[n.Peer]
	n.describe(status)
	for _, i := range status.Instances {
		n.book(i.Function)
	}
	f.observer.Joined(n, status.Instances)
	f.nodes[n.Peer] = n
	f.mu.Unlock()
	if former != nil {
		former.close()
	}
}

func (f *Fleet) leave(n *Node) {
	f.mu.Lock()
	if f.nodes[n.Peer] == n {
		delete(f.nodes, n.Peer)
	}
	f.mu.Unlock()
	f.observer.Lost(n)
	f.log.Info("agent takes no work any more", "peer", n.Peer)
}

// poll asks a node how it is until it does not answer.
func (f *Fleet) poll(ctx context.Context, n *Node) error {
	ticker := time.NewTicker(f.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.session.CloseChan():
			return fmt.Errorf("%w: %s: connection closed", ErrLost, n.Peer)
		case <-ticker.C:
		}
		status, err := n.ask(ctx, f.name)
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Peer, err)
		}
		f.mu.Lock()
		n.describe(status)
		f.mu.Unlock()
	}
}

// Disconnect takes a node's work connection away: it is of the cluster no more.
func (f *Fleet) Disconnect(peer string) {
	f.mu.Lock()
	n := f.nodes[peer]
	f.mu.Unlock()
	if n != nil {
		n.close()
	}
}

// Reserve chooses a node for an instance of fn and books its memory and CPU there, until Release.
func (f *Fleet) Reserve(fn api.Function, avoid []*Node) (*Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.nodes) == 0 {
		return nil, ErrNoNodes
	}
	var best *Node
	for _, n := range f.nodes {
		if n.fits(fn) && !slices.Contains(avoid, n) && (best == nil || n.before(best, fn)) {
			best = n
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w for %s (%d bytes, %d thousandths of a core) on %d nodes", ErrNoRoom, fn.ID(), fn.Memory, fn.CPU, len(f.nodes))
	}
	best.book(fn)
	return best, nil
}

// CouldHold says whether some node would have room for an instance if instances of other functions were stopped.
func (f *Fleet) CouldHold(fn api.Function) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if fn.Memory <= n.memory && fn.CPU <= n.cpu && (fn.PerNode == 0 || n.booked.functions[fn.Key()] < fn.PerNode) {
			return true
		}
	}
	return false
}

// Release gives back what Reserve booked.
func (f *Fleet) Release(n *Node, fn api.Function) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n.unbook(fn)
}

// Full notes that a node refused an instance for want of room, which counts until it says how it is.
func (f *Fleet) Full(n *Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n.full = true
}

// Nodes returns the nodes that take work, by peer ID.
func (f *Fleet) Nodes() []*Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*Node, 0, len(f.nodes))
	for _, n := range f.nodes {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b *Node) int { return strings.Compare(a.Peer, b.Peer) })
	return list
}

// Infos returns what is known of the nodes.
func (f *Fleet) Infos() []api.NodeInfo {
	list := []api.NodeInfo{}
	for _, n := range f.Nodes() {
		f.mu.Lock()
		list = append(list, api.NodeInfo{Peer: n.Peer, Zone: n.zone, Memory: n.memory, CPU: n.cpu, Booked: n.booked.memory, BookedCPU: n.booked.cpu, Images: len(n.images)})
		f.mu.Unlock()
	}
	return list
}

// load is what is booked on a node.
type load struct {
	memory    int64
	cpu       int
	functions map[string]int // instances, by namespace/name
}

func (n *Node) book(fn api.Function) {
	n.booked.memory += fn.Memory
	n.booked.cpu += fn.CPU
	n.booked.functions[fn.Key()]++
}

func (n *Node) unbook(fn api.Function) {
	n.booked.memory -= fn.Memory
	n.booked.cpu -= fn.CPU
	if n.booked.functions[fn.Key()]--; n.booked.functions[fn.Key()] <= 0 {
		delete(n.booked.functions, fn.Key())
	}
}

// describe takes what a node says of itself.
func (n *Node) describe(s api.NodeStatus) {
	n.memory, n.cpu, n.zone, n.full = s.Memory, s.CPU, s.Zone, false
	n.images = make(map[digest.Digest]bool, len(s.Images))
	for _, d := range s.Images {
		n.images[d] = true
	}
}

// fits says whether a node has room for an instance.
func (n *Node) fits(fn api.Function) bool {
	return !n.full && n.booked.memory+fn.Memory <= n.memory && n.booked.cpu+fn.CPU <= n.cpu &&
		(fn.PerNode == 0 || n.booked.functions[fn.Key()] < fn.PerNode)
}

// before says whether a node is the better one of two that fit: who holds the image starts at once; else the fuller one, so that large
// instances find room and idle machines can go.
func (n *Node) before(o *Node, fn api.Function) bool {
	if a, b := n.images[fn.Digest], o.images[fn.Digest]; a != b {
		return a
	}
	if a, b := n.used(fn), o.used(fn); a != b {
		return a > b
	}
	return n.Peer < o.Peer
}

// used returns which share of a node is in use with an instance more, by what is scarcer.
func (n *Node) used(fn api.Function) float64 {
	return max(float64(n.booked.memory+fn.Memory)/float64(n.memory), float64(n.booked.cpu+fn.CPU)/float64(n.cpu))
}
