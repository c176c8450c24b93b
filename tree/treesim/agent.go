package treesim

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree"
	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// agent is a machine of the simulation. It may crash and come back; then it has the blocks that it had, or none.
type agent struct {
	world  *world
	id     stream.PeerID
	number int
	link   Link
	lie    atomic.Pointer[lie] // nil: honest

	mu     sync.Mutex
	run    *process      // nil: crashed
	store  *store        // on its disk
	first  time.Duration // when the first block came; 0: it has not
	full   time.Duration // when the last one came
	failed map[stream.PeerID]bool
	cutOff map[stream.PeerID]bool
	beats  uint64        // heartbeats that were planned; the last one counts
	beaten time.Duration // when the last one was sent
}

// process is an agent's life from start to crash.
type process struct {
	agent     *agent
	node      *stream.Node
	member    *member.Member
	coalesced []*fetch.Coalescer // from the registry up
	blocks    blockfmt.Source    // what containers read
	ctx       context.Context    // ends with it
	stop      context.CancelFunc
}

// start begins an agent's life, and joins the tree. An agent that lives goes on.
func (a *agent) start() error {
	if a.process() != nil {
		return nil
	}
	p := &process{agent: a}
	p.ctx, p.stop = context.WithCancel(context.Background())
	cfg := a.world.cfg.Node
	cfg.Authorize = func(stream.PeerID) error { return nil }
	cfg.Verify = a.world.content.verify
	cfg.Report = a.cutsOff
	cfg.Measured = a.beatSoon
	var err error
	if p.node, err = stream.NewNode(cfg); err != nil {
		return err
	}
	if p.member, err = member.New(p.config()); err != nil {
		return err
	}
	p.blocks = p.member.Blocks()
	a.mu.Lock()
	a.run, a.failed, a.cutOff = p, map[stream.PeerID]bool{}, map[stream.PeerID]bool{}
	a.beats++
	turn := a.beats
	a.mu.Unlock()
	a.world.net.Add(a.id, a.link, p.serve)
	a.beat(turn)
	return nil
}

// config puts the agent's stack together:
//
//	Deadline(Coalesced(Cached(store, Member(tree, Coalesced(Retry(Limited(registry)))))))
func (p *process) config() member.Config {
	w, a := p.agent.world, p.agent
	cfg := w.cfg.Member
	cfg.Node, cfg.Image, cfg.Store, cfg.Attach, cfg.Failed = p.node, w.content.image, a.store, p.attach, a.hasFailed
	cfg.Origin = p.once(fetch.Retry(fetch.Limited(w.registry.source(a.id), w.cfg.Connections), fetch.RetryConfig{}))
	cfg.Stack = func(store blockfmt.Store, tree blockfmt.Source) blockfmt.Source {
		return fetch.Deadline(p.once(fetch.Cached(store, tree)), w.cfg.ReadTimeout)
	}
	cfg.Order, cfg.Ahead = w.order, w.ahead
	cfg.Ladder.Verify = w.content.verify
	return cfg
}

// once is fetch.Coalesced, until the process ends.
func (p *process) once(next blockfmt.Source) blockfmt.Source {
	c := fetch.Coalesced(next)
	p.coalesced = append(p.coalesced, c)
	return c
}

func (p *process) attach(ctx context.Context, s *stream.Share, to stream.Address, at stream.Attachment) (*stream.Peer, error) {
	a := p.agent
	conn, err := a.world.net.Dial(ctx, a.id, to.ID)
	if err != nil {
		return nil, err
	}
	return s.Attach(ctx, a.disguise(conn), to.ID, at)
}

func (p *process) serve(conn stream.Conn, from stream.PeerID) {
	_ = p.node.Serve(p.ctx, p.agent.disguise(conn), from) // why edges end is the reader's business
}

// crash ends an agent at once. What it held in memory is gone.
func (a *agent) crash() {
	a.mu.Lock()
	p := a.run
	a.run = nil
	a.mu.Unlock()
	if p == nil {
		return
	}
	a.world.net.Crash(a.id)
	a.world.wg.Go(p.close)
}

func (p *process) close() {
	p.stop()
	if err := p.member.Close(); err != nil {
		p.agent.world.fail(err)
	}
	for _, c := range slices.Backward(p.coalesced) {
		if err := c.Close(); err != nil {
			p.agent.world.fail(err)
		}
	}
}

// process returns the agent's life, nil if it has crashed.
func (a *agent) process() *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.run
}

// added takes note of a block that is new in the store.
func (a *agent) added(held int) {
	now := a.world.net.Now()
	a.mu.Lock()
	if a.first == 0 {
		a.first = now
	}
	full := held == a.world.content.image.Len()
	if full {
		a.full = now
	}
	a.mu.Unlock()
	if full {
		a.world.progress()
	}
}

// hasFailed tells the owner of a peer that cannot be reached, once for each heartbeat. A peer that refuses the place is not dead:
// one of the two knows of a newer one.
func (a *agent) hasFailed(peer stream.PeerID, err error) {
	if errors.Is(err, context.Canceled) { // the peer told that another takes its place
		return
	}
	refused := errors.Is(err, stream.ErrStale)
	a.mu.Lock()
	known := a.failed[peer]
	a.failed[peer] = true
	a.mu.Unlock()
	if !known && !refused {
		a.world.toOwner(a, func(o *owner) { o.report(id(peer), a.id) })
	}
}

func (a *agent) cutsOff(c stream.CutOff) {
	a.mu.Lock()
	a.cutOff[c.Peer] = true
	a.mu.Unlock()
	a.world.log("cut off", string(c.Peer), "by "+string(a.id)+": "+c.Reason.Error())
	a.beatSoon()
}

// beat sends heartbeats as long as the agent lives.
func (a *agent) beat(turn uint64) {
	a.mu.Lock()
	p := a.run
	if p == nil || turn != a.beats {
		a.mu.Unlock()
		return
	}
	b := beat{from: a.id, machine: tree.Machine{ID: tree.ID(a.id)}}
	for peer := range a.failed {
		b.failed = append(b.failed, tree.ID(peer))
	}
	for peer := range a.cutOff {
		b.cutOff = append(b.cutOff, tree.ID(peer))
	}
	clear(a.failed)
	a.beats++
	turn, a.beaten = a.beats, a.world.net.Now()
	a.mu.Unlock()
	b.held, b.epochs = p.member.Held(), p.member.Epochs()
	uplink, waiting := p.node.Uplink()
	for _, peer := range waiting {
		b.machine.Waiting = append(b.machine.Waiting, tree.ID(peer))
	}
	b.machine.Uplink = uplink
	b.machine.Sent, b.machine.Received = p.node.Carried()
	if a.world.cfg.Measured && uplink == 0 {
		b.machine.Uplink = a.link.Up
	}
	a.world.toOwner(a, func(o *owner) { o.hear(b) })
	a.world.net.After(beatInterval, uint64(a.number), func() { a.beat(turn) })
}

// beatSoon sends the next heartbeat at once, if none was sent a moment ago.
func (a *agent) beatSoon() {
	a.world.net.After(0, uint64(a.number), func() {
		a.mu.Lock()
		turn, soon := a.beats, a.world.net.Now()-a.beaten >= leastInterval
		a.mu.Unlock()
		if soon {
			a.beat(turn)
		}
	})
}
