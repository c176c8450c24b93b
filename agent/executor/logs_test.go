package executor

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/scheduler/api"
)

func newWriter(l *functionLog) *lineWriter {
	return &lineWriter{log: l, version: 1, instance: "a", stream: "stdout", invocation: &atomic.Pointer[string]{}}
}

// TestLinesWhateverThePieces: how the text is cut on its way does not matter, and every line is kept or counted.
func TestLinesWhateverThePieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.StringMatching(`[a-z]{0,300}`), 1, 50).Draw(t, "lines")
		text := strings.Join(lines, "\n") + "\n"
		l := newLogs(rapid.IntRange(500, 20_000).Draw(t, "bytes"), 1).of("f")
		w := newWriter(l)
		now := l.refilled // no time passes
		for len(text) > 0 {
			n := rapid.IntRange(1, len(text)).Draw(t, "piece")
			w.write([]byte(text[:n]), now)
			text = text[n:]
		}
		seen := 0
		for _, line := range l.query(0, time.Time{}, 1000) {
			seen += line.Lost
			if seen >= len(lines) || line.Text != lines[seen] {
				t.Fatalf("line %d is %q, lines were %q", seen, line.Text, lines)
			}
			seen++
		}
		if seen+l.lost != len(lines) {
			t.Fatalf("%d lines kept or told as lost, and %d lost after them, of %d", seen, l.lost, len(lines))
		}
	})
}

func TestLogKeepsTheNewest(t *testing.T) {
	l := newLogs(10_000, 1<<30).of("f")
	w := newWriter(l)
	begin := l.refilled
	for i := range 1000 {
		w.write(fmt.Appendf(nil, "line %d\n", i), begin.Add(time.Duration(i)*time.Second))
	}
	lines := l.query(0, time.Time{}, 1000)
	if last := lines[len(lines)-1]; last.Text != "line 999" || l.size > 10_000 || len(lines) < 50 {
		t.Errorf("%d lines, %d bytes, the last is %+v", len(lines), l.size, last)
	}
	if got := l.query(0, begin.Add(998*time.Second), 1000); len(got) != 2 {
		t.Errorf("%d lines of the last two seconds", len(got))
	}
	if got := l.query(0, time.Time{}, 3); len(got) != 3 || got[2].Text != "line 999" {
		t.Errorf("the last three: %+v", got)
	}
}

func TestLongLinesAreCut(t *testing.T) {
	l := newLogs(1<<20, 1).of("f")
	newWriter(l).write([]byte(strings.Repeat("x", 2*maxLine)+"\nnext\n"), time.Now())
	lines := l.query(0, time.Time{}, 10)
	if len(lines) != 2 || len(lines[0].Text) != maxLine || lines[1].Text != "next" {
		t.Errorf("%d lines", len(lines))
	}
}

// TestLogRate: what comes faster than the rate is counted, and the count is told with the next line that is kept.
func TestLogRate(t *testing.T) {
	l := newLogs(1000, 1000).of("f")
	w := newWriter(l)
	now := l.refilled
	for range 100 {
		w.write([]byte("x\n"), now)
	}
	w.write([]byte("later\n"), now.Add(time.Second))
	lines := l.query(0, time.Time{}, 100)
	last := lines[len(lines)-1]
	if last.Text != "later" || last.Lost == 0 || last.Lost >= 100 {
		t.Errorf("%+v", last)
	}
}

func TestFunctionsLogsAreBounded(t *testing.T) {
	ls := newLogs(1000, 1000)
	for i := range maxLogs + 10 {
		ls.of(fmt.Sprint(i))
	}
	if len(ls.logs) != maxLogs || ls.find(fmt.Sprint(maxLogs+9)) == nil {
		t.Errorf("%d logs", len(ls.logs))
	}
}

func TestTail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tl tail
		var all []byte
		for _, n := range rapid.SliceOf(rapid.IntRange(0, 3*tailSize)).Draw(t, "sizes") {
			p := []byte(strings.Repeat(string(rune('a'+len(all)%26)), n))
			tl.write(p)
			all = append(all, p...)
		}
		if want := string(all[max(0, len(all)-tailSize):]); tl.String() != want {
			t.Fatalf("tail of %d bytes, want %d", len(tl.String()), len(want))
		}
	})
}

// TestBackoff: it begins after some failures in a row, doubles up to its limit, and ends with a success.
func TestBackoff(t *testing.T) {
	c := newCrashes(Config{Failures: 3, Backoff: time.Second, MaxBackoff: 5 * time.Second})
	now := time.Unix(1_000_000, 0)
	why := fail(api.FailureInit, "no database")
	for i, want := range []time.Duration{0, 0, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		c.failed("f", why, now)
		f := c.check("f", now)
		if want == 0 && f != nil || want > 0 && (f == nil || f.retry != want || !strings.Contains(f.Error(), "no database")) {
			t.Errorf("after %d failures: %+v, want %v", i+1, f, want)
		}
		if c.check("f", now.Add(want)) != nil {
			t.Errorf("refused after %v", want)
		}
	}
	if c.check("g", now) != nil {
		t.Error("another one is refused")
	}
	c.succeeded("f")
	if c.check("f", now) != nil {
		t.Error("refused after a success")
	}
}
