package trigger

import (
	"fmt"
	"slices"
)

// session is a run of the application that is not over.
type session struct {
	timer  // its limit of time
	ev     *Evaluator
	id     Session
	began  instant
	ending bool // no more input from outside
	over   bool
	cells  []*cell // by trigger.index; nil: nothing has happened there
	// objects are all that were put, to know them again.
	objects map[objectID]content
	bytes   int64
	steps   int
	runs    map[Invocation]*run // that are not over
	known   int                 // how many there were
	// early are objects of invocations that were not known to run when they came, only for triggers that watch.
	early map[delivery]bool
	// finished are the owner's invocations that are over, so that a late start is not taken for a new one.
	finished map[Invocation]bool
}

type objectID struct {
	bucket int
	key    Key
}

type content struct {
	size   int64
	digest string
}

func (c content) String() string {
	if c.digest == "" {
		return fmt.Sprintf("%d bytes", c.size)
	}
	return fmt.Sprintf("%d bytes, %.80s", c.size, c.digest)
}

type delivery struct {
	invocation Invocation
	trigger    int
}

func newSession(ev *Evaluator, id Session) *session {
	return &session{ev: ev, id: id, began: ev.now, cells: make([]*cell, len(ev.triggers)), objects: map[objectID]content{},
		runs: map[Invocation]*run{}, early: map[delivery]bool{}, finished: map[Invocation]bool{}}
}

// cell returns what a trigger knows of the session, or of all.
func (s *session) cell(t *trigger) *cell {
	if across := s.ev.across[t.index]; across != nil {
		return across
	}
	if s.cells[t.index] == nil {
		s.cells[t.index] = &cell{ev: s.ev, trigger: t, session: s, matcher: t.rule.matcher(), since: s.ev.now}
	}
	return s.cells[t.index]
}

func (s *session) put(b *bucket, o Object) error {
	id, c := objectID{b.index, o.Key}, content{o.Size, o.Digest}
	if first, ok := s.objects[id]; ok {
		return s.again(b, o, first, c)
	}
	if why := s.tooMany(o); why != "" {
		s.close(OutcomeLimit, why)
		return nil
	}
	s.objects[id] = c
	s.bytes += o.Size
	for _, t := range b.triggers {
		if s.over {
			return nil
		}
		if t.rule.takes(o.Key) {
			s.deliver(t, o.Source.Invocation)
			s.cell(t).put(o)
		}
	}
	return nil
}

// again takes an object that is there already: its source has delivered all the same.
func (s *session) again(b *bucket, o Object, first, now content) error {
	for _, t := range b.triggers {
		if t.rule.takes(o.Key) {
			s.deliver(t, o.Source.Invocation)
		}
	}
	if first.size != now.size || first.digest != now.digest && first.digest != "" && now.digest != "" {
		return fmt.Errorf("%w: object %.80q of bucket %s is %v, and was put again as %v: the first one counts", ErrConflict, o.Key, o.Bucket, first, now)
	}
	s.ev.out.Duplicate = true
	return nil
}

// tooMany returns why an object would be too much, or nothing.
func (s *session) tooMany(o Object) string {
	limits := s.ev.app.Limits
	if len(s.objects) >= limits.Objects {
		return fmt.Sprintf("object %.80q of bucket %s would be more than %d objects", o.Key, o.Bucket, limits.Objects)
	}
	if o.Size > limits.Bytes-s.bytes {
		return fmt.Sprintf("object %.80q of bucket %s of %d bytes would make more than %d bytes", o.Key, o.Bucket, o.Size, limits.Bytes)
	}
	return ""
}

// step counts a firing, and says whether it may be.
func (s *session) step(f Function) bool {
	if s.over {
		return false
	}
	if limit := s.ev.app.Limits.Steps; s.steps >= limit {
		s.close(OutcomeLimit, fmt.Sprintf("another run of %s would be more than %d steps", f, limit))
		return false
	}
	s.steps++
	return true
}

// ring ends a session that takes too long.
func (s *session) ring() {
	s.close(OutcomeLimit, fmt.Sprintf("took more than %v", s.ev.app.Limits.Time))
}

func (s *session) rank() (session, what string) { return string(s.id), "" }

// settle flushes an ending session in which nothing runs, and ends it if nothing comes of that.
func (s *session) settle() {
	if s.over || !s.ending || len(s.runs) > 0 {
		return
	}
	for _, c := range s.cells {
		if c != nil {
			c.flush()
		}
	}
	if len(s.runs) > 0 || s.over {
		return
	}
	if len(waiting(s.cells, s.ev.now)) > 0 {
		s.close(OutcomeIncomplete, "nothing runs that could put what is waited for")
		return
	}
	s.close(OutcomeDone, "")
}

// close ends the session. What runs is cancelled; objects that wait across sessions stay only if the session is at its regular end.
func (s *session) close(outcome Outcome, why string) {
	ended := Ended{Session: s.id, Outcome: outcome, Why: why, Waiting: waiting(s.cells, s.ev.now)}
	s.over = true
	s.ev.timers.stop(&s.timer)
	for _, c := range s.cells {
		if c != nil {
			s.ev.timers.stop(&c.timer)
		}
	}
	for _, r := range s.sortedRuns() {
		r.cancel("session: " + string(outcome))
	}
	if outcome == OutcomeCancelled || outcome == OutcomeLimit {
		for _, c := range s.ev.across {
			if c != nil {
				c.withdraw(s.id)
			}
		}
	}
	delete(s.ev.sessions, s.id)
	s.ev.out.Ended = append(s.ev.out.Ended, ended)
}

func (s *session) sortedRuns() []*run {
	runs := make([]*run, 0, len(s.runs))
	for _, r := range s.runs {
		runs = append(runs, r)
	}
	slices.SortFunc(runs, compareRuns)
	return runs
}
