package fuse

import (
	"log/slog"
	"sync"
	"time"
)

// failureLog writes a line about a failed read at most once per interval and blob: a reader that retries against a dead
// source would otherwise fill the disk.
type failureLog struct {
	log      *slog.Logger
	interval time.Duration

	mu    sync.Mutex
	blobs map[string]*failures // guarded by mu; as many as there are blobs that ever failed
}

type failures struct {
	last       time.Time
	suppressed int // since last
}

func newFailureLog(log *slog.Logger, interval time.Duration) *failureLog {
	return &failureLog{log: log, interval: interval, blobs: map[string]*failures{}}
}

func (l *failureLog) failed(blob string, off int64, n int, err error) {
	suppressed, ok := l.admit(blob)
	if !ok {
		return
	}
	l.log.Error("read failed, reader gets EIO", "blob", blob, "offset", off, "length", n, "err", err, "suppressed", suppressed)
}

func (l *failureLog) admit(blob string) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.blobs[blob]
	if f == nil {
		f = &failures{}
		l.blobs[blob] = f
	}
	now := time.Now()
	if !f.last.IsZero() && now.Sub(f.last) < l.interval {
		f.suppressed++
		return 0, false
	}
	suppressed, f.last, f.suppressed = f.suppressed, now, 0
	return suppressed, true
}

// forget drops what is known of a blob that is no longer served.
func (l *failureLog) forget(blob string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.blobs, blob)
}
