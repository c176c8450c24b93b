package executor

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	// maxLine is where longer lines are cut, in bytes.
	maxLine = 16 << 10
	// lineCost is what a line costs of a log's bound beside its text.
	lineCost = 128
	// maxLogs is how many functions' logs are kept; the one that was written to longest ago goes first.
	maxLogs = 1000
)

// logs are those of all functions that ran here lately. Safe for concurrent use.
type logs struct {
	bytes, rate int

	mu   sync.Mutex
	logs map[string]*functionLog // by namespace/name
}

func newLogs(bytes, rate int) *logs {
	return &logs{bytes: bytes, rate: rate, logs: map[string]*functionLog{}}
}

// of returns the log of a function, made if there is none.
func (l *logs) of(name string) *functionLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	log := l.logs[name]
	if log == nil {
		l.evict()
		log = &functionLog{max: l.bytes, rate: float64(l.rate), budget: float64(l.bytes), refilled: time.Now()}
		l.logs[name] = log
	}
	return log
}

func (l *logs) evict() {
	if len(l.logs) < maxLogs {
		return
	}
	var oldest string
	var when time.Time
	for name, log := range l.logs {
		if at := log.last(); oldest == "" || at.Before(when) {
			oldest, when = name, at
		}
	}
	delete(l.logs, oldest)
}

// find returns the log of a function, or nil.
func (l *logs) find(name string) *functionLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.logs[name]
}

// functionLog keeps the newest lines of a function, of all its versions and instances. What comes faster than the rate is counted
// and thrown away. Safe for concurrent use.
type functionLog struct {
	max  int     // bytes
	rate float64 // bytes per second

	mu       sync.Mutex
	entries  []logEntry // oldest first
	size     int
	budget   float64 // bytes that may be kept now
	refilled time.Time
	lost     int // lines since the last entry
}

type logEntry struct {
	version int
	line    api.LogLine
}

func (e logEntry) cost() int { return len(e.line.Text) + lineCost }

func (l *functionLog) last() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refilled
}

// add keeps a line, or counts it as lost. It reports whether there is budget for another one.
func (l *functionLog) add(e logEntry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.budget = min(float64(l.max), l.budget+e.line.Time.Sub(l.refilled).Seconds()*l.rate)
	l.refilled = e.line.Time
	cost := e.cost()
	if float64(cost) > l.budget {
		l.lost++
		return false
	}
	l.budget -= float64(cost)
	e.line.Lost, l.lost = l.lost, 0
	l.entries = append(l.entries, e)
	l.size += cost
	for l.size > l.max {
		l.size -= l.entries[0].cost()
		l.entries[0] = logEntry{} // the text is garbage now
		l.entries = l.entries[1:]
	}
	return l.budget > 0
}

// drop counts lines that nobody looked at.
func (l *functionLog) drop(lines int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost += lines
}

// query returns the newest lines, at most limit, of a version (0: of all) from a time on, oldest first.
func (l *functionLog) query(version int, since time.Time, limit int) []api.LogLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []api.LogLine
	for i := len(l.entries) - 1; i >= 0 && len(lines) < limit; i-- {
		e := l.entries[i]
		if (version == 0 || e.version == version) && !e.line.Time.Before(since) {
			lines = append(lines, e.line)
		}
	}
	for i, j := 0, len(lines)-1; i < j; i, j = i+1, j-1 {
		lines[i], lines[j] = lines[j], lines[i]
	}
	return lines
}

// lineWriter cuts one stream of an instance's output into lines. For one goroutine.
type lineWriter struct {
	log              *functionLog
	version          int
	instance, stream string
	invocation       *atomic.Pointer[string]
	partial          []byte // of a line whose end has not come, at most maxLine
}

func (w *lineWriter) write(p []byte, now time.Time) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			w.keep(p)
			return
		}
		w.keep(p[:end])
		p = p[end+1:]
		if more := w.flush(now); more {
			continue
		}
		// Without budget the lines that follow are lost for sure: counting is a hundred times cheaper than cutting.
		if last := bytes.LastIndexByte(p, '\n'); last >= 0 {
			w.log.drop(bytes.Count(p, []byte{'\n'}))
			p = p[last+1:]
		}
	}
}

func (w *lineWriter) keep(p []byte) {
	w.partial = append(w.partial, p[:min(len(p), maxLine-len(w.partial))]...)
}

// flush ends the line that has begun.
func (w *lineWriter) flush(now time.Time) bool {
	line := api.LogLine{Time: now, Instance: w.instance, Stream: w.stream, Text: string(w.partial)}
	if id := w.invocation.Load(); id != nil {
		line.Invocation = *id
	}
	w.partial = w.partial[:0]
	return w.log.add(logEntry{version: w.version, line: line})
}

// tailSize is how much of an instance's output its tail keeps, in bytes.
const tailSize = 4 << 10

// tail keeps the last bytes of an instance's output, whatever its log throws away. Safe for concurrent use.
type tail struct {
	mu    sync.Mutex
	text  []byte // at most twice tailSize
	total int64  // bytes ever written
}

func (t *tail) write(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total += int64(len(p))
	t.text = append(t.text, p[max(0, len(p)-tailSize):]...)
	if len(t.text) > 2*tailSize {
		t.text = t.text[:copy(t.text, t.text[len(t.text)-tailSize:])]
	}
}

// reset forgets what was written, for the next invocation.
func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = t.text[:0]
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text[max(0, len(t.text)-tailSize):])
}

func (t *tail) written() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}
