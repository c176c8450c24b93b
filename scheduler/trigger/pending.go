package trigger

import (
	"fmt"
	"time"
)

// Pending says what a session waits for, one line each: its runs, then its triggers that hold something incomplete. Session "" is
// the triggers across sessions.
func (ev *Evaluator) Pending(now time.Time, id Session) ([]string, error) {
	if id == "" {
		return waiting(ev.across, ev.at(now)), nil
	}
	s, err := ev.session(id)
	if err != nil {
		return nil, err
	}
	at := ev.at(now)
	var lines []string
	for _, r := range s.sortedRuns() {
		lines = append(lines, r.describe(at))
	}
	lines = append(lines, waiting(s.cells, at)...)
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("waits for objects, or its end, since %v", since(s.began, at))}
	}
	return lines, nil
}

// Sessions returns how many sessions are open.
func (ev *Evaluator) Sessions() int { return len(ev.sessions) }

// waiting describes the triggers that hold something incomplete.
func waiting(cells []*cell, now instant) (lines []string) {
	for _, c := range cells {
		if c == nil {
			continue
		}
		if waits := c.matcher.waits(); waits != "" {
			lines = append(lines, fmt.Sprintf("trigger %s (%s of bucket %s): %s, since %v", c.trigger.Name, c.trigger.Rule.Kind(), c.trigger.Bucket, waits, since(c.since, now)))
		}
	}
	return lines
}

func (r *run) describe(now instant) string {
	line := fmt.Sprintf("run %s of %s: attempt %d", r.id, r.function, r.attempt)
	w := r.missing()
	switch {
	case r.waits:
		return line + fmt.Sprintf(" came to nothing, the next one begins in %v", since(now, r.again))
	case r.ended && w != nil:
		line += " has finished"
	default:
		line += fmt.Sprintf(" is under way since %v", since(r.began, now))
	}
	if w != nil {
		line += fmt.Sprintf(", must put an object for trigger %s within %v", w.trigger.Name, since(now, w.due))
	}
	return line
}

func since(from, to instant) time.Duration {
	return time.Duration(max(0, to-from)).Round(time.Millisecond)
}
