package trigger

import (
	"cmp"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// run is an invocation that is not over: its function runs, or triggers wait for what it has to deliver.
type run struct {
	timer
	session  *session
	id       Invocation
	function Function
	attempt  int
	number   int     // in the order in which the session's runs became known
	began    instant // of the attempt
	started  bool    // the attempt: its function runs
	ended    bool    // the attempt, whatever came of it
	waits    bool    // for the end of the back-off
	again    instant // the end of the back-off
	watches  []watch // by the triggers that rerun it
	firing   Firing  // what it is rerun with; only if it is watched
}

// watch is that a trigger waits for an object of a run.
type watch struct {
	trigger   *trigger
	due       instant
	delivered bool
}

func compareRuns(a, b *run) int { return cmp.Compare(a.number, b.number) }

// Run is an attempt of an invocation that starts or is over.
type Run struct {
	Session  Session
	ID       Invocation // of the Firing, or a name that the owner chose
	Function Function
	Attempt  int // from 1
}

// Started says that a function runs. The owner's own invocations are known by it.
func (ev *Evaluator) Started(now time.Time, r Run) (Output, error) {
	ev.advance(now)
	err := ev.withRun(r, func(s *session, known *run) error {
		switch {
		case known != nil && known.attempt == r.Attempt && !known.started:
			known.started = true
			known.start()
		case known == nil:
			if known = s.begin(r); known != nil {
				known.started = true
			}
		}
		return nil
	})
	return ev.take(), err
}

// Finished says that a function has done its work. It must come for every invocation: a session that ends waits for it. Triggers that watch for
// its objects go on waiting.
func (ev *Evaluator) Finished(now time.Time, r Run) (Output, error) {
	ev.advance(now)
	err := ev.withRun(r, func(s *session, known *run) error {
		if known == nil {
			if r.ID.owned() && !s.finished[r.ID] && s.step(r.Function) {
				s.finished[r.ID] = true // its start is late
			}
			return nil
		}
		known.ended = true
		known.schedule()
		return nil
	})
	return ev.take(), err
}

// Failed says that an attempt came to nothing. It is made again if a trigger watches for its objects, else it is a dead letter.
func (ev *Evaluator) Failed(now time.Time, r Run, why string) (Output, error) {
	ev.advance(now)
	err := ev.withRun(r, func(s *session, known *run) error {
		switch {
		case known == nil:
			if known = s.begin(r); known != nil {
				known.fail(why)
			}
		case known.attempt == r.Attempt && known.waits:
			known.ended = true // the next attempt is coming already, unless an object of this one does
		case known.attempt == r.Attempt:
			known.fail(why)
		}
		return nil
	})
	return ev.take(), err
}

func (ev *Evaluator) withRun(r Run, do func(*session, *run) error) error {
	s, err := ev.session(r.Session)
	if err != nil {
		return err
	}
	if r.ID == "" || len(r.ID) > 2*maxName || !utf8.ValidString(string(r.ID)) || r.Attempt < 1 {
		return fmt.Errorf("%w: invocation %.80q, attempt %d: want a name of UTF-8, and attempts from 1", ErrInvalid, r.ID, r.Attempt)
	}
	if !ev.known[r.Function] {
		return fmt.Errorf("%w: application %s has no function %.80q", ErrInvalid, ev.app.Name, r.Function)
	}
	known := s.runs[r.ID]
	if known != nil && known.function != r.Function {
		return fmt.Errorf("%w: invocation %.80q is of function %s, not %s", ErrConflict, r.ID, known.function, r.Function)
	}
	return do(s, known)
}

// begin makes a run of one of the owner's invocations. It returns nil if it is none, is over, or would be too many.
func (s *session) begin(r Run) *run {
	if !r.ID.owned() || s.finished[r.ID] || !s.step(r.Function) {
		return nil
	}
	return s.add(Firing{Session: s.id, ID: r.ID, Function: r.Function, Attempt: r.Attempt})
}

// add makes a run of a firing.
func (s *session) add(f Firing) *run {
	s.known++
	r := &run{session: s, number: s.known, id: f.ID, function: f.Function, attempt: f.Attempt}
	for _, t := range s.ev.watchers[f.Function] {
		c := s.cell(t)
		if m, ok := c.matcher.(finite); ok && m.done() || s.early[delivery{f.ID, t.index}] {
			continue
		}
		c.watch(r)
		r.watches = append(r.watches, watch{trigger: t})
	}
	if len(r.watches) > 0 {
		r.firing = f
	}
	s.runs[r.id] = r
	r.start()
	return r
}

// drop forgets a run that is over.
func (s *session) drop(r *run) {
	s.ev.timers.stop(&r.timer)
	for _, w := range r.watches {
		r.deliver(w.trigger)
	}
	if r.id.owned() {
		s.finished[r.id] = true
	}
	delete(s.runs, r.id)
	if s.ending && len(s.runs) == 0 {
		s.ev.unsettled = append(s.ev.unsettled, s)
	}
}

// deliver notes that an invocation has put an object that the trigger takes.
func (s *session) deliver(t *trigger, id Invocation) {
	if t.Rerun == nil || id == "" {
		return
	}
	if r := s.runs[id]; r != nil {
		r.deliver(t)
		r.schedule()
		return
	}
	if len(s.early) < s.ev.app.Limits.Objects { // duplicates may name any number of sources
		s.early[delivery{id, t.index}] = true
	}
}

func (r *run) deliver(t *trigger) {
	for i := range r.watches {
		if w := &r.watches[i]; w.trigger == t && !w.delivered {
			w.delivered = true
			r.session.cell(t).unwatch()
		}
	}
}

func (r *run) watchedBy(t *trigger) bool {
	return slices.ContainsFunc(r.watches, func(w watch) bool { return w.trigger == t && !w.delivered })
}

// missing returns the watch that will end first, nil if there is none.
func (r *run) missing() *watch {
	var first *watch
	for i := range r.watches {
		if w := &r.watches[i]; !w.delivered && (first == nil || w.due < first.due) {
			first = w
		}
	}
	return first
}

// start gives the attempt its time, from now.
func (r *run) start() {
	r.began = r.session.ev.now
	for i := range r.watches {
		r.watches[i].due = r.began.add(r.watches[i].trigger.Rerun.Timeout)
	}
	r.schedule()
}

// schedule sets the timer, or drops a run for which nothing is left to do.
func (r *run) schedule() {
	w := r.missing()
	switch ev := r.session.ev; {
	case w == nil && r.ended:
		r.session.drop(r)
	case w == nil:
		ev.timers.stop(&r.timer)
	case r.waits:
		ev.timers.set(&r.timer, r.again, r)
	default:
		ev.timers.set(&r.timer, w.due, r)
	}
}

func (r *run) rank() (session, what string) { return string(r.session.id), string(r.id) }

func (r *run) ring() {
	if r.waits {
		r.repeat()
		return
	}
	w := r.missing()
	r.retry(w, fmt.Sprintf("put nothing for trigger %s within %v", w.trigger.Name, w.trigger.Rerun.Timeout))
}

func (r *run) fail(why string) {
	r.ended = true
	switch w := r.missing(); {
	case w != nil:
		r.retry(w, "failed: "+why)
	case len(r.watches) == 0:
		r.bury("failed: " + why + "; no trigger runs it again")
	default:
		r.session.drop(r)
	}
}

// cancel drops a run, and says so if it is under way.
func (r *run) cancel(why string) {
	if !r.ended {
		out := &r.session.ev.out
		out.Cancels = append(out.Cancels, Cancel{r.session.id, r.id, r.function, why})
	}
	r.session.drop(r)
}

// retry makes another attempt after the back-off, as the trigger of the watch says.
func (r *run) retry(w *watch, why string) {
	rerun := w.trigger.Rerun
	if r.attempt >= rerun.Attempts {
		r.bury(fmt.Sprintf("%s, attempt %d of %d", why, r.attempt, rerun.Attempts))
		return
	}
	r.waits, r.again = true, r.session.ev.now.add(rerun.wait(r.attempt))
	r.schedule()
}

// bury makes the run a dead letter, and tells the triggers that wait for its objects.
func (r *run) bury(why string) {
	s := r.session
	s.ev.out.DeadLetters = append(s.ev.out.DeadLetters, DeadLetter{s.id, r.id, r.function, r.attempt, why, r.firing.Objects})
	watches := slices.Clone(r.watches)
	s.drop(r)
	for _, w := range watches {
		c := s.cell(w.trigger)
		if m, ok := c.matcher.(counting); ok && !w.delivered {
			m.lost(c, r.id)
		}
	}
}

// repeat makes the next attempt.
func (r *run) repeat() {
	s := r.session
	if !s.step(r.function) {
		return
	}
	r.attempt++
	r.started, r.ended, r.waits = false, false, false
	r.firing.Attempt = r.attempt
	r.start()
	s.ev.out.Firings = append(s.ev.out.Firings, r.firing)
}
