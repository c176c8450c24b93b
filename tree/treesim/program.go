package treesim

import (
	"context"
	"math/rand/v2"
	"time"
)

// launch starts the programs.
func (w *world) launch(ctx context.Context, rng *rand.Rand) {
	for i := range w.cfg.Programs.Count {
		a, own := w.agents[i%len(w.agents)], rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		w.wg.Go(func() { w.program(ctx, a, own) })
	}
}

// program is a container that starts: it reads and computes in turns.
func (w *world) program(ctx context.Context, a *agent, rng *rand.Rand) {
	p := w.cfg.Programs
	pause := time.Duration(float64(p.Compute) * (0.9 + 0.2*rng.Float64()) / float64(p.Reads))
	for a.process() == nil { // until the agent is there
		if !sleep(ctx, time.Millisecond) {
			return
		}
	}
	for i := range p.Reads {
		block := i
		if rng.Float64() < p.Strays {
			block = rng.IntN(p.Reads)
		}
		w.read(ctx, a, block)
		if !sleep(ctx, pause) {
			return
		}
	}
	now := w.net.Now()
	w.mu.Lock()
	w.ready = append(w.ready, now-w.began)
	w.mu.Unlock()
	w.progress()
}

// sleep waits; false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// read reads a block as a container does. The agent's end is the container's end too: what it read then does not count.
func (w *world) read(ctx context.Context, a *agent, block int) {
	p := a.process()
	if p == nil {
		return
	}
	ref := w.content.image.Ref(block)
	had := a.store.Has(ref)
	start := w.net.Now()
	stored, err := p.blocks.Block(ctx, ref)
	end := w.net.Now()
	if p.ctx.Err() != nil || ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads.Add(end - start)
	if !had {
		w.misses.Add(end - start)
	}
	switch {
	case err != nil:
		w.failed++
		w.note("read failed", string(a.id), err.Error())
	case w.content.verify(ref, stored) != nil:
		w.wrong++
	}
	w.spans = append(w.spans, Span{a.id, start - w.began, end - start})
}
