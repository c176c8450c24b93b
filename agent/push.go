package agent

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/fuse"
)

// A pusher puts blocks of which containers have read a part into the kernel's page cache as a whole. A program that starts reads
// many small files beside each other: every request to the agent that is saved is two changes of the running process.
type pusher struct {
	server *fuse.Server
	log    *slog.Logger
	queue  chan push // never closed: a read that outlives the server may still add
	done   chan struct{}
	wg     sync.WaitGroup
}

type push struct {
	blob   uint64 // id in the FUSE mount
	off, n int64
}

// maxPushes bounds the pushes that wait. What comes when there are more is read by requests.
const maxPushes = 64

func newPusher(server *fuse.Server, log *slog.Logger) *pusher {
	return &pusher{server: server, log: log, queue: make(chan push, maxPushes), done: make(chan struct{})}
}

// start works until stop.
func (p *pusher) start() {
	p.wg.Go(func() {
		for {
			select {
			case <-p.done:
				return
			case q := <-p.queue:
				if err := p.server.Push(q.blob, q.off, q.n); err != nil {
					p.log.Debug("block not pushed, it is read by requests", "err", err)
				}
			}
		}
	})
}

// stop ends the work and waits for the push that is under way.
func (p *pusher) stop() {
	close(p.done)
	p.wg.Wait()
}

// add queues a block that is valid in its file. It does not block.
func (p *pusher) add(blob uint64, ref blockfmt.Ref) {
	select {
	case p.queue <- push{blob, ref.RawOffset, ref.RawLength}:
	default:
	}
}

// pushed are the blocks of a blob that were handed to the pusher.
type pushed []atomic.Bool

// mark reports whether the block was not marked before.
func (p pushed) mark(block int) bool { return !p[block].Load() && !p[block].Swap(true) }
