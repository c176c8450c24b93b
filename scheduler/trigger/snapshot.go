package trigger

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Snapshot is all that an evaluator knows, to be kept as JSON. The same state has the same JSON.
type Snapshot struct {
	Application string         `json:"application"`
	Version     string         `json:"version"`
	Now         int64          `json:"now"`  // the evaluator's own time, in nanoseconds
	Seen        int64          `json:"seen"` // what the clock was then, in nanoseconds since 1970; 0: no event yet
	Sessions    []sessionState `json:"sessions,omitempty"`
	Across      []cellState    `json:"across,omitempty"`
}

type sessionState struct {
	ID       Session       `json:"id"`
	Began    instant       `json:"began"`
	Ending   bool          `json:"ending,omitempty"`
	Bytes    int64         `json:"bytes"`
	Steps    int           `json:"steps"`
	Objects  []objectState `json:"objects,omitempty"`
	Cells    []cellState   `json:"cells,omitempty"`
	Runs     []runState    `json:"runs,omitempty"`
	Early    []earlyState  `json:"early,omitempty"`
	Finished []Invocation  `json:"finished,omitempty"`
}

type objectState struct {
	Bucket Bucket `json:"bucket"`
	Key    Key    `json:"key"`
	Size   int64  `json:"size"`
	Digest string `json:"digest,omitempty"`
}

type cellState struct {
	Trigger Name            `json:"trigger"`
	Since   instant         `json:"since"`
	State   json.RawMessage `json:"state"`
}

type runState struct {
	ID       Invocation   `json:"id"`
	Function Function     `json:"function"`
	Attempt  int          `json:"attempt"`
	Began    instant      `json:"began"`
	Started  bool         `json:"started,omitempty"`
	Ended    bool         `json:"ended,omitempty"`
	Waits    bool         `json:"waits,omitempty"`
	Again    instant      `json:"again,omitempty"`
	Watches  []watchState `json:"watches,omitempty"`
	Firing   Firing       `json:"firing,omitzero"`
}

type watchState struct {
	Trigger   Name    `json:"trigger"`
	Due       instant `json:"due"`
	Delivered bool    `json:"delivered,omitempty"`
}

type earlyState struct {
	Invocation Invocation `json:"invocation"`
	Trigger    Name       `json:"trigger"`
}

// Snapshot returns the state, for an evaluator that takes this one's place. It takes time in proportion to all that is held.
func (ev *Evaluator) Snapshot() (Snapshot, error) {
	s := Snapshot{Application: ev.app.Name, Version: ev.app.Version, Now: int64(ev.now)}
	if ev.clocked {
		s.Seen = ev.seen
	}
	var err error
	if s.Across, err = saveCells(ev.across); err != nil {
		return s, err
	}
	for _, id := range slices.Sorted(maps.Keys(ev.sessions)) {
		state, err := ev.sessions[id].save()
		if err != nil {
			return s, fmt.Errorf("session %.80q: %w", id, err)
		}
		s.Sessions = append(s.Sessions, state)
	}
	return s, nil
}

func saveCells(cells []*cell) (states []cellState, err error) {
	for _, c := range cells {
		if c == nil {
			continue
		}
		state, err := json.Marshal(c.matcher)
		if err != nil {
			return nil, fmt.Errorf("trigger %s: %w", c.trigger.Name, err)
		}
		states = append(states, cellState{c.trigger.Name, c.since, state})
	}
	return states, nil
}

func (s *session) save() (state sessionState, err error) {
	state = sessionState{ID: s.id, Began: s.began, Ending: s.ending, Bytes: s.bytes, Steps: s.steps, Finished: slices.Sorted(maps.Keys(s.finished))}
	for id, c := range s.objects {
		state.Objects = append(state.Objects, objectState{s.ev.app.Buckets[id.bucket], id.key, c.size, c.digest})
	}
	slices.SortFunc(state.Objects, func(a, b objectState) int {
		return cmp.Or(cmp.Compare(a.Bucket, b.Bucket), cmp.Compare(a.Key, b.Key))
	})
	for d := range s.early {
		state.Early = append(state.Early, earlyState{d.invocation, s.ev.triggers[d.trigger].Name})
	}
	slices.SortFunc(state.Early, func(a, b earlyState) int {
		return cmp.Or(cmp.Compare(a.Invocation, b.Invocation), cmp.Compare(a.Trigger, b.Trigger))
	})
	for _, r := range s.sortedRuns() {
		state.Runs = append(state.Runs, r.save())
	}
	state.Cells, err = saveCells(s.cells)
	return state, err
}

func (r *run) save() runState {
	state := runState{ID: r.id, Function: r.function, Attempt: r.attempt, Began: r.began, Started: r.started, Ended: r.ended, Waits: r.waits, Again: r.again, Firing: r.firing}
	for _, w := range r.watches {
		state.Watches = append(state.Watches, watchState{w.trigger.Name, w.due, w.delivered})
	}
	return state
}

// Restore returns an evaluator that goes on where the snapshot was taken. What the clock has moved since counts as time. The snapshot must be
// one that Snapshot made for the same version of the application: another is ErrConflict.
func Restore(app Application, s Snapshot) (*Evaluator, error) {
	ev, err := New(app)
	if err != nil {
		return nil, err
	}
	if s.Application != app.Name || s.Version != app.Version {
		return nil, fmt.Errorf("%w: the snapshot is of application %.80q %.80s, not of %s %s", ErrConflict, s.Application, s.Version, app.Name, app.Version)
	}
	if s.Now < 0 || s.Now > int64(never/2) {
		return nil, fmt.Errorf("%w: the snapshot is of time %v", ErrInvalid, time.Duration(s.Now))
	}
	ev.now, ev.seen, ev.clocked = instant(s.Now), s.Seen, s.Seen != 0
	if err := ev.load(s); err != nil {
		return nil, fmt.Errorf("snapshot of application %s: %w", app.Name, err)
	}
	return ev, nil
}

func (ev *Evaluator) load(s Snapshot) error {
	names := make(map[Name]*trigger, len(ev.triggers))
	for _, t := range ev.triggers {
		names[t.Name] = t
	}
	find := func(n Name) (*trigger, error) {
		if t := names[n]; t != nil {
			return t, nil
		}
		return nil, fmt.Errorf("%w: there is no trigger %.80q", ErrInvalid, n)
	}
	load := loader{ev, find}
	for _, state := range s.Across {
		if err := load.cell(nil, state); err != nil {
			return err
		}
	}
	for _, state := range s.Sessions {
		if err := load.session(state); err != nil {
			return fmt.Errorf("session %.80q: %w", state.ID, err)
		}
	}
	return nil
}

// loader fills an evaluator from a snapshot.
type loader struct {
	ev   *Evaluator
	find func(Name) (*trigger, error)
}

func (l loader) session(state sessionState) error {
	if l.ev.sessions[state.ID] != nil || state.Began > l.ev.now || state.Bytes < 0 || state.Steps < 0 {
		return fmt.Errorf("%w: it is there twice, began later, or has less than nothing", ErrInvalid)
	}
	s := newSession(l.ev, state.ID)
	s.began, s.ending, s.bytes, s.steps = state.Began, state.Ending, state.Bytes, state.Steps
	l.ev.sessions[s.id] = s
	l.ev.timers.set(&s.timer, s.began.add(l.ev.app.Limits.Time), s)
	for _, o := range state.Objects {
		b := l.ev.buckets[o.Bucket]
		if b == nil {
			return fmt.Errorf("%w: there is no bucket %.80q", ErrInvalid, o.Bucket)
		}
		s.objects[objectID{b.index, o.Key}] = content{o.Size, o.Digest}
	}
	for _, e := range state.Early {
		t, err := l.find(e.Trigger)
		if err != nil {
			return err
		}
		s.early[delivery{e.Invocation, t.index}] = true
	}
	for _, id := range state.Finished {
		s.finished[id] = true
	}
	for _, c := range state.Cells {
		if err := l.cell(s, c); err != nil {
			return err
		}
	}
	for _, r := range state.Runs {
		if err := l.run(s, r); err != nil {
			return fmt.Errorf("run %.80q: %w", r.ID, err)
		}
	}
	return nil
}

// cell loads what a trigger knows of a session; nil: of all.
func (l loader) cell(s *session, state cellState) error {
	t, err := l.find(state.Trigger)
	if err != nil {
		return err
	}
	c := l.ev.across[t.index]
	if (s == nil) != (c != nil) {
		return fmt.Errorf("%w: trigger %s has another scope", ErrInvalid, t.Name)
	}
	if s != nil {
		c = s.cell(t)
	}
	c.since = state.Since
	if err := json.Unmarshal(state.State, c.matcher); err != nil {
		return fmt.Errorf("trigger %s: %w: %w", t.Name, ErrInvalid, err)
	}
	if m, ok := c.matcher.(checked); ok {
		if err := m.check(l.ev.now); err != nil {
			return fmt.Errorf("trigger %s: %w: %w", t.Name, ErrInvalid, err)
		}
	}
	c.schedule()
	return nil
}

func (l loader) run(s *session, state runState) error {
	if s.runs[state.ID] != nil || state.Attempt < 1 || state.Waits && len(state.Watches) == 0 {
		return fmt.Errorf("%w: it is there twice, or no attempt, or waits for nothing", ErrInvalid)
	}
	s.known++
	r := &run{session: s, number: s.known, id: state.ID, function: state.Function, attempt: state.Attempt, began: state.Began,
		started: state.Started, ended: state.Ended, waits: state.Waits, again: state.Again, firing: state.Firing}
	for _, w := range state.Watches {
		t, err := l.find(w.Trigger)
		if err != nil {
			return err
		}
		if t.Rerun == nil {
			return fmt.Errorf("%w: trigger %s watches nobody", ErrInvalid, t.Name)
		}
		r.watches = append(r.watches, watch{t, w.Due, w.Delivered})
		if !w.Delivered {
			s.cell(t).watch(r)
		}
	}
	s.runs[r.id] = r
	r.schedule()
	return nil
}
