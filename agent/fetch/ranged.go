package fetch

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// A RangeReader gives parts of stored blobs as they arrive. The reader ends after n bytes or with an error of a kind.
type RangeReader interface {
	Range(ctx context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error)
}

// RangedConfig says how requests are made. The zero value is good.
type RangedConfig struct {
	Requests int           // at a time; a quarter of them is never used in the background. Default 8.
	MaxBytes int64         // of one request. Default 8 MiB.
	MinBytes int64         // below which a run of blocks is not split over free requests. Default 1 MiB.
	Window   time.Duration // to wait for neighbours of a block that is wanted. Default 200 µs.
}

func (c RangedConfig) withDefaults() RangedConfig {
	setDefault(&c.Requests, 8)
	setDefault(&c.MaxBytes, 8<<20)
	setDefault(&c.MinBytes, 1<<20)
	setDefault(&c.Window, 200*time.Microsecond)
	return c
}

// Ranger is a Source over a RangeReader. Neighbouring blocks that are wanted at the same time, within a short window or while all
// requests are busy, are asked for in one request, and each is given out as soon as its last byte is there. The bytes
// are not verified.
type Ranger struct {
	reader RangeReader
	cfg    RangedConfig
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	pending   []*want // in the order of arrival
	active    int     // requests
	gathering bool
}

// want is one read of a block.
type want struct {
	ref     blockfmt.Ref
	ctx     context.Context // of the reader
	request *request        // nil while pending; under Ranger.mu
	done    chan struct{}   // closed when stored or err is set
	stored  []byte
	err     error
}

// request is a run of neighbouring blocks under way. A block may have several wants.
type request struct {
	wants  []*want // by offset
	ctx    context.Context
	cancel context.CancelFunc
	wanted int // wants whose readers still wait; under Ranger.mu
}

// Ranged returns a Ranger over reader. Close it when done.
func Ranged(reader RangeReader, cfg RangedConfig) *Ranger {
	r := &Ranger{reader: reader, cfg: cfg.withDefaults()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close cancels what is under way and waits for it.
func (r *Ranger) Close() error {
	r.mu.Lock()
	r.cancel() // under mu: no request begins afterwards
	pending := r.pending
	r.pending = nil
	for _, w := range pending {
		w.finish(nil, r.closedError(w.ref))
	}
	r.mu.Unlock()
	r.wg.Wait()
	return nil
}

func (r *Ranger) closedError(ref blockfmt.Ref) error {
	return fmt.Errorf("%v: source is closed: %w", ref, blockfmt.ErrTransient)
}

func (w *want) finish(stored []byte, err error) {
	w.stored, w.err = stored, err
	close(w.done)
}

func (r *Ranger) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if ref.Length <= 0 || ref.Length > blockfmt.MaxBlockSize {
		return nil, fmt.Errorf("%v: %d stored bytes: %w", ref, ref.Length, blockfmt.ErrCorrupt)
	}
	w := &want{ref: ref, ctx: ctx, done: make(chan struct{})}
	if err := r.add(w); err != nil {
		return nil, err
	}
	promoted := blockfmt.Demand(ctx)
	if blockfmt.IsDemand(ctx) {
		promoted = nil
	}
	for {
		select {
		case <-w.done:
			return w.stored, w.err
		case <-promoted:
			promoted = nil
			r.mu.Lock()
			r.dispatch()
			r.mu.Unlock()
		case <-ctx.Done():
			r.leave(w)
			return nil, fmt.Errorf("%v: %w", ref, context.Cause(ctx))
		}
	}
}

// add makes a want pending and sees to it that somebody dispatches it.
func (r *Ranger) add(w *want) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return r.closedError(w.ref)
	}
	r.pending = append(r.pending, w)
	if r.gathering || r.active >= r.cfg.Requests {
		return nil
	}
	r.gathering = true
	r.wg.Go(func() {
		timer := time.NewTimer(r.cfg.Window)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.ctx.Done():
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.gathering = false
		r.dispatch()
	})
	return nil
}

// leave takes a reader away; a request that nobody waits for is canceled.
func (r *Ranger) leave(w *want) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.request == nil {
		r.pending = slices.DeleteFunc(r.pending, func(o *want) bool { return o == w })
		return
	}
	if w.request.wanted--; w.request.wanted == 0 {
		w.request.cancel()
	}
}

// dispatch begins requests for what is pending as far as requests are free; mu is held.
func (r *Ranger) dispatch() {
	for len(r.pending) > 0 && r.ctx.Err() == nil {
		first, free := r.mostUrgent()
		if free <= 0 {
			return
		}
		q := &request{wants: r.take(first, free)}
		q.wanted = len(q.wants)
		q.ctx, q.cancel = context.WithCancel(r.ctx)
		for _, w := range q.wants {
			w.request = q
		}
		r.active++
		r.wg.Go(func() {
			r.run(q)
			q.cancel()
			r.mu.Lock()
			defer r.mu.Unlock()
			r.active--
			r.dispatch()
		})
	}
}

// mostUrgent returns the first demand want, else the first one, and how many requests are free for it; mu is held.
func (r *Ranger) mostUrgent() (*want, int) {
	for _, w := range r.pending {
		if blockfmt.IsDemand(w.ctx) {
			return w, r.cfg.Requests - r.active
		}
	}
	return r.pending[0], r.cfg.Requests - r.active - reserve(r.cfg.Requests)
}

// take removes from pending the run of neighbours around first that one request asks for; mu is held. Blocks before a
// demanded one would delay it, so that only demanded ones are taken there.
func (r *Ranger) take(first *want, free int) []*want {
	same := slices.DeleteFunc(slices.Clone(r.pending), func(w *want) bool { return w.ref.Blob != first.ref.Blob })
	slices.SortStableFunc(same, func(a, b *want) int { return int(min(1, max(-1, a.ref.Offset-b.ref.Offset))) })
	urgent := blockfmt.IsDemand(first.ctx)
	at := slices.Index(same, first)
	start, end := at, at+1
	for start > 0 && adjacent(same[start-1], same[start]) && (!urgent || blockfmt.IsDemand(same[start-1].ctx)) {
		start--
	}
	for end < len(same) && adjacent(same[end-1], same[end]) {
		end++
	}
	run := same[start:end]
	run = part(run, first, min(r.cfg.MaxBytes, max(r.cfg.MinBytes, span(run)/int64(free))))
	r.pending = slices.DeleteFunc(r.pending, func(w *want) bool { return slices.Contains(run, w) })
	return run
}

// part cuts a run into parts of at most limit bytes (or one block), from its start, and returns the one with first.
func part(run []*want, first *want, limit int64) []*want {
	start := 0
	for i := range run {
		if i > start && span(run[start:i+1]) > limit {
			if slices.Contains(run[start:i], first) {
				return run[start:i]
			}
			start = i
		}
	}
	return run[start:]
}

// adjacent says whether b begins where a ends, or is the same block.
func adjacent(a, b *want) bool {
	return b.ref.Offset == a.ref.Offset+a.ref.Length || (b.ref.Offset == a.ref.Offset && b.ref.Length == a.ref.Length)
}

// span returns the stored bytes from the first to the last of a run.
func span(run []*want) int64 {
	last := run[len(run)-1].ref
	return last.Offset + last.Length - run[0].ref.Offset
}

// run does one request and gives each block out as it arrives. After an error the wants that are left get it.
func (r *Ranger) run(q *request) {
	next := 0
	err := func() error {
		body, err := r.reader.Range(q.ctx, q.wants[0].ref.Blob, q.wants[0].ref.Offset, span(q.wants))
		if err != nil {
			return err
		}
		defer body.Close()
		for next < len(q.wants) {
			ref := q.wants[next].ref
			stored := make([]byte, ref.Length)
			if n, err := io.ReadFull(body, stored); err != nil {
				return bodyError(ref, n, err)
			}
			for ; next < len(q.wants) && q.wants[next].ref.Offset == ref.Offset; next++ {
				q.wants[next].finish(stored, nil)
			}
		}
		return nil
	}()
	for _, w := range q.wants[next:] {
		w.finish(nil, err)
	}
}

// bodyError gives the error of a body that ends early its kind.
func bodyError(ref blockfmt.Ref, n int, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%v: body ends after %d of %d bytes: %w", ref, n, ref.Length, blockfmt.ErrTransient)
	}
	return fmt.Errorf("%v: after %d of %d bytes: %w", ref, n, ref.Length, err)
}
