package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how far the parts of a long operation are. Safe for concurrent use.
type progress interface {
	// update says that a part has done of total bytes; total 0 means unknown.
	update(part string, done, total int64)
	// done ends the show.
	done()
}

// newProgress shows bars on a terminal and logs one line per part elsewhere.
func newProgress(w io.Writer, log *slog.Logger) progress {
	if isTerminal(w) {
		return newBars(w)
	}
	return &lines{log: log, started: map[string]time.Time{}}
}

// bars is one line per part on a terminal.
type bars struct {
	container *mpb.Progress
	mu        sync.Mutex
	bars      map[string]*mpb.Bar
}

func newBars(w io.Writer) *bars {
	return &bars{container: mpb.New(mpb.WithOutput(w), mpb.WithWidth(48)), bars: map[string]*mpb.Bar{}}
}

func (b *bars) update(part string, done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bar := b.bars[part]
	if bar == nil {
		bar = b.container.AddBar(0,
			mpb.PrependDecorators(decor.Name(part, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)))
		b.bars[part] = bar
	}
	if total > 0 {
		bar.SetTotal(total, false)
	}
	bar.SetCurrent(done)
	if total > 0 && done >= total {
		bar.SetTotal(total, true)
	}
}

func (b *bars) done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, bar := range b.bars {
		bar.Abort(false)
	}
	b.container.Wait()
}

// lines logs the end of every part.
type lines struct {
	log     *slog.Logger
	mu      sync.Mutex
	started map[string]time.Time // zero: has ended
}

func (l *lines) update(part string, done, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	start, known := l.started[part]
	if !known {
		start = time.Now()
		l.started[part] = start
	}
	if total > 0 && done >= total && !start.IsZero() {
		l.started[part] = time.Time{}
		l.log.Info("done", "part", part, "bytes", total, "seconds", time.Since(start).Seconds())
	}
}

func (l *lines) done() {}

// watchContent reports what containerd is downloading until the returned function is called.
func watchContent(ctx context.Context, store content.IngestManager, p progress) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var owner sync.WaitGroup
	owner.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		active := map[string]int64{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			reportIngests(ctx, store, p, active)
		}
	})
	return func() { cancel(); owner.Wait() }
}

// reportIngests reports the downloads that run, and those in active that ended since the last call.
func reportIngests(ctx context.Context, store content.IngestManager, p progress, active map[string]int64) {
	statuses, err := store.ListStatuses(ctx)
	if err != nil {
		return
	}
	seen := map[string]bool{}
	for _, s := range statuses {
		part, ok := strings.CutPrefix(s.Ref, "layer-sha256:")
		if !ok || s.Total == 0 {
			continue
		}
		part = layerName(part)
		seen[part], active[part] = true, s.Total
		p.update(part, s.Offset, s.Total)
	}
	for part, total := range active {
		if !seen[part] {
			p.update(part, total, total)
			delete(active, part)
		}
	}
}
