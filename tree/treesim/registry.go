package treesim

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// registryID is the registry's host.
const registryID stream.PeerID = "registry"

// registry is a host that has all blocks, and takes its time to answer.
type registry struct {
	net     *Network
	content *content
	link    Link
	latency time.Duration
	opens   chan struct{} // closed when it begins to answer
	log     func(what, whom, detail string)

	mu    sync.Mutex
	asked map[int]int // times that a block was, by number
}

// asks counts a request.
func (r *registry) asks(agent stream.PeerID, block int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked[block]++; r.asked[block] > 1 {
		r.log("asked again", string(agent), fmt.Sprintf("block %d", block))
	}
}

// open connects the registry, for the first time or after it was down.
func (r *registry) open() { r.net.Add(registryID, r.link, r.serve) }

// serve answers one request.
func (r *registry) serve(conn stream.Conn, agent stream.PeerID) {
	m, err := conn.Receive(nil)
	if err != nil {
		return
	}
	r.asks(agent, m.Block)
	<-r.opens
	time.Sleep(r.latency)
	data := r.content.of(r.content.image.Ref(m.Block))
	if conn.Send(stream.Message{Kind: stream.KindData, Block: m.Block, Length: len(data), Total: len(data), Data: data}) == nil {
		_, _ = conn.Receive(nil) // until it is through
	}
}

// source is the registry as an agent sees it.
func (r *registry) source(agent stream.PeerID) blockfmt.Source {
	return blockfmt.SourceFunc(func(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
		conn, err := r.net.Dial(ctx, agent, registryID)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		if err := conn.Send(stream.Message{Kind: stream.KindWant, Block: ref.Number}); err != nil {
			return nil, fmt.Errorf("%v: %w: %w", ref, err, blockfmt.ErrTransient)
		}
		m, err := conn.Receive(nil)
		if err != nil {
			return nil, fmt.Errorf("%v: %w: %w", ref, err, blockfmt.ErrTransient)
		}
		return m.Data, nil
	})
}
