package trigger

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Evaluator knows what the triggers of an application wait for. It is not safe for concurrent use.
//
// Every event has the time at which it happened. First all that was due until then happens, in the order and at the instants at which it was
// due; so the output does not depend on how often or how late Tick is called. Output is valid with an error too: time has passed.
type Evaluator struct {
	app      Application
	triggers []*trigger
	buckets  map[Bucket]*bucket
	watchers map[Function][]*trigger // that rerun the function
	known    map[Function]bool
	sessions map[Session]*session
	across   []*cell // of triggers across sessions, by trigger.index; else nil

	now       instant
	seen      int64 // wall clock of the last event, in nanoseconds since 1970
	clocked   bool  // seen is set
	timers    timers
	out       Output
	unsettled []*session // that are ending and may be at their end
}

// trigger is one as the evaluator needs it.
type trigger struct {
	Trigger
	index int // in Evaluator.triggers and session.cells
	rule  prepared
}

type bucket struct {
	index    int
	triggers []*trigger
}

// New returns an evaluator without sessions. The error is of type Problems.
func New(app Application) (*Evaluator, error) {
	if err := app.Validate(); err != nil {
		return nil, fmt.Errorf("application %s: %w", app.Name, err)
	}
	app.Limits = app.Limits.withDefaults()
	ev := &Evaluator{app: app, buckets: map[Bucket]*bucket{}, watchers: map[Function][]*trigger{}, known: map[Function]bool{},
		sessions: map[Session]*session{}, across: make([]*cell, len(app.Triggers))}
	for i, name := range app.Buckets {
		ev.buckets[name] = &bucket{index: i}
	}
	for _, f := range app.Functions {
		ev.known[f] = true
	}
	for i, t := range app.Triggers {
		t.Gets = cmp.Or(t.Gets, GetsValues)
		ev.addTrigger(&trigger{Trigger: t, index: i, rule: t.Rule.prepare()})
	}
	return ev, nil
}

func (ev *Evaluator) addTrigger(t *trigger) {
	ev.triggers = append(ev.triggers, t)
	b := ev.buckets[t.Bucket]
	b.triggers = append(b.triggers, t)
	if t.Rerun != nil {
		ev.watchers[t.Rerun.Source] = append(ev.watchers[t.Rerun.Source], t)
	}
	if t.Scope == ScopeApplication {
		ev.across[t.index] = &cell{ev: ev, trigger: t, matcher: t.rule.matcher()}
	}
}

// Tick lets time pass. The owner calls it at Deadline.
func (ev *Evaluator) Tick(now time.Time) Output {
	ev.advance(now)
	return ev.take()
}

// Deadline returns when Tick should be called next, by the clock of the last event; false: not before another event.
func (ev *Evaluator) Deadline() (time.Time, bool) {
	at := ev.timers.next()
	if at == never {
		return time.Time{}, false
	}
	return time.Unix(0, ev.seen).Add(time.Duration(at - ev.now)), true
}

// advance lets all happen that was due until now. Only steps forward of the clock count as time, so a clock that jumps back delays nothing, and
// one that jumps forward makes things come early, once.
func (ev *Evaluator) advance(now time.Time) {
	target := ev.at(now)
	ev.seen, ev.clocked = now.UnixNano(), true
	ev.ring(target)
	ev.now = target
}

// ring lets all alarms ring until an instant.
func (ev *Evaluator) ring(until instant) {
	for ev.timers.next() <= until {
		t := ev.timers[0]
		ev.now = max(ev.now, t.at)
		ev.timers.stop(t)
		t.target.ring()
		ev.settle()
	}
}

// at returns what the evaluator's time is at a time of the clock.
func (ev *Evaluator) at(now time.Time) instant {
	passed := now.UnixNano() - ev.seen
	if !ev.clocked || passed < 0 {
		return ev.now
	}
	return instant(min(uint64(ev.now)+uint64(passed), uint64(never/2)))
}

// take ends an event: what is due at once happens.
func (ev *Evaluator) take() Output {
	ev.settle()
	ev.ring(ev.now)
	out := ev.out
	ev.out = Output{}
	return out
}

// settle ends sessions that may end, or flushes what they still hold.
func (ev *Evaluator) settle() {
	for len(ev.unsettled) > 0 {
		s := ev.unsettled[0]
		ev.unsettled = ev.unsettled[1:]
		s.settle()
	}
	ev.unsettled = nil
}

// Begin opens a session.
func (ev *Evaluator) Begin(now time.Time, id Session) (Output, error) {
	ev.advance(now)
	if err := ownName("session", string(id)); err != nil {
		return ev.take(), err
	}
	if ev.sessions[id] != nil {
		return ev.take(), fmt.Errorf("%w: session %.80q has begun already", ErrConflict, id)
	}
	ev.open(id)
	return ev.take(), nil
}

func (ev *Evaluator) open(id Session) *session {
	s := newSession(ev, id)
	ev.sessions[id] = s
	ev.timers.set(&s.timer, ev.now.add(ev.app.Limits.Time), s)
	return s
}

// End says that no more input comes from outside. The session goes on while anything runs; whenever nothing does, incomplete batches and windows
// fire with what they hold. When nothing fires any more it is over.
func (ev *Evaluator) End(now time.Time, id Session) (Output, error) {
	ev.advance(now)
	s, err := ev.session(id)
	if err == nil {
		s.ending = true
		ev.unsettled = append(ev.unsettled, s)
	}
	return ev.take(), err
}

// Cancel ends a session at once. What runs is cancelled, what is held is dropped, from triggers across sessions too.
func (ev *Evaluator) Cancel(now time.Time, id Session, why string) (Output, error) {
	ev.advance(now)
	s, err := ev.session(id)
	if err == nil {
		s.close(OutcomeCancelled, why)
	}
	return ev.take(), err
}

// Put says that an object is in its bucket. One that is there already changes nothing; if its size or digest differs, the
// error is ErrConflict and the first one counts.
func (ev *Evaluator) Put(now time.Time, o Object) (Output, error) {
	ev.advance(now)
	err := ev.put(o)
	return ev.take(), err
}

func (ev *Evaluator) put(o Object) error {
	if err := o.validate(); err != nil {
		return err
	}
	b := ev.buckets[o.Bucket]
	if b == nil {
		return fmt.Errorf("%w: application %s has no bucket %.80q", ErrInvalid, ev.app.Name, o.Bucket)
	}
	s, err := ev.session(o.Session)
	if err != nil {
		return err
	}
	return s.put(b, o)
}

func (ev *Evaluator) session(id Session) (*session, error) {
	s := ev.sessions[id]
	if s == nil {
		return nil, fmt.Errorf("%w: %.80q: begin it, or it is over", ErrSession, id)
	}
	return s, nil
}

// Announce says, for a session, which keys a DynamicJoin waits for, or whose controls a DynamicGroup does. The same again changes nothing,
// something else is ErrConflict.
func (ev *Evaluator) Announce(now time.Time, id Session, name Name, keys []Key) (Output, error) {
	ev.advance(now)
	err := ev.with(id, name, "announcements", func(c *cell) (bool, error) {
		m, ok := c.matcher.(announced)
		if !ok {
			return false, nil
		}
		if err := checkKeys(keys); err != nil {
			return true, err
		}
		return true, m.announce(c, keys)
	})
	return ev.take(), err
}

// Control says to a DynamicGroup that a source has put all objects of a group; with all, those of all groups.
func (ev *Evaluator) Control(now time.Time, id Session, name Name, source Key, of GroupSet) (Output, error) {
	ev.advance(now)
	err := ev.with(id, name, "controls", func(c *cell) (bool, error) {
		m, ok := c.matcher.(controlled)
		if !ok {
			return false, nil
		}
		if len(of.Group) > maxName || !utf8.ValidString(string(of.Group)) {
			return true, fmt.Errorf("%w: group %.80q, want at most %d bytes of UTF-8", ErrInvalid, of.Group, maxName)
		}
		if err := checkKeys([]Key{source}); err != nil {
			return true, err
		}
		return true, m.control(c, source, of)
	})
	return ev.take(), err
}

// with does something to a trigger's state in a session; do returns false if such triggers know no such event.
func (ev *Evaluator) with(id Session, name Name, event string, do func(*cell) (bool, error)) error {
	s, err := ev.session(id)
	if err != nil {
		return err
	}
	for _, t := range ev.triggers {
		if t.Name != name {
			continue
		}
		c := s.cell(t)
		known, err := do(c)
		if !known {
			return fmt.Errorf("%w: trigger %s is %s, which takes no %s", ErrInvalid, name, t.Rule.Kind(), event)
		}
		c.schedule()
		if err != nil {
			return fmt.Errorf("trigger %s: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("%w: application %s has no trigger %.80q", ErrInvalid, ev.app.Name, name)
}

// checkKeys checks a set of keys that a user gave.
func checkKeys(keys []Key) error {
	if len(keys) > maxKeys {
		return fmt.Errorf("%w: %d keys, at most %d", ErrInvalid, len(keys), maxKeys)
	}
	seen := make(map[Key]bool, len(keys))
	for _, k := range keys {
		if k == "" || len(k) > maxName || !utf8.ValidString(string(k)) {
			return fmt.Errorf("%w: key %.80q, want 1 to %d bytes of UTF-8", ErrInvalid, k, maxName)
		}
		if seen[k] {
			return fmt.Errorf("%w: key %.80q is there twice", ErrInvalid, k)
		}
		seen[k] = true
	}
	return nil
}

// maxKeys bounds sets of keys.
const maxKeys = 100_000

// owned says whether an invocation is the owner's, not a trigger's.
func (i Invocation) owned() bool { return !strings.Contains(string(i), "/") }
