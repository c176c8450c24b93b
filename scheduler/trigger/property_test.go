package trigger_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// everything is an application with all kinds of triggers, of random parameters, on the bucket "in". Functions put nothing by themselves.
func everything(t *rapid.T) trigger.Application {
	n := rapid.IntRange(1, 5).Draw(t, "n")
	k := rapid.IntRange(1, n).Draw(t, "k")
	slide := time.Duration(rapid.IntRange(1, 10).Draw(t, "slide")) * time.Second
	window := slide * time.Duration(rapid.IntRange(1, 4).Draw(t, "overlap"))
	timeout := time.Duration(rapid.IntRange(0, 10).Draw(t, "timeout")) * time.Second
	rest := rapid.SampledFrom([]trigger.Rest{trigger.RestIgnore, trigger.RestCancel}).Draw(t, "rest")
	rerun := &trigger.Rerun{Source: "src", Timeout: 5 * time.Second, Attempts: rapid.IntRange(1, 3).Draw(t, "attempts"),
		Backoff: time.Duration(rapid.IntRange(0, 3).Draw(t, "backoff")) * time.Second}
	app := trigger.Application{Name: "test", Version: "v1", Functions: []trigger.Function{"f", "src"}, Buckets: []trigger.Bucket{"in"}}
	add := func(name trigger.Name, rule trigger.Rule, scope trigger.Scope, rerun *trigger.Rerun) {
		app.Triggers = append(app.Triggers, trigger.Trigger{Name: name, Bucket: "in", Function: "f", Rule: rule, Scope: scope, Rerun: rerun})
	}
	add("across-batch", trigger.ByBatchSize{N: n, Timeout: timeout + time.Second}, trigger.ScopeApplication, nil)
	add("across-time", trigger.ByTime{Window: window}, trigger.ScopeApplication, nil)
	add("batch", trigger.ByBatchSize{N: n, Timeout: timeout}, "", nil)
	add("each", trigger.Immediate{}, "", nil)
	add("group", trigger.DynamicGroup{Controls: controls[:rapid.IntRange(0, 2).Draw(t, "controls")]}, "", nil)
	add("join", trigger.DynamicJoin{}, "", rerun)
	add("named", trigger.ByName{Key: "k1*"}, "", nil)
	add("race", trigger.Redundant{K: k, N: n, Rest: rest}, "", rerun)
	add("set", trigger.BySet{Keys: []trigger.Key{"k3", "k1", "k5"}}, "", rerun)
	add("slide", trigger.ByTime{Window: window, Slide: slide}, "", nil)
	add("time", trigger.ByTime{Window: window}, "", nil)
	return app
}

var (
	controls = []trigger.Key{"m1", "m2"}
	sessions = []trigger.Session{"a", "b", "c"}
)

// event is something that happens to an evaluator.
type event struct {
	at      time.Duration
	session trigger.Session
	do      func(*trigger.Evaluator, time.Time) (trigger.Output, error)
	// object is what is put, if something is.
	object *trigger.Object
}

// story draws events, and keeps what an evaluator says of them.
type story struct {
	t      *rapid.T
	app    trigger.Application
	ev     *trigger.Evaluator
	now    time.Duration
	events []event
	said   []trigger.Output
	errs   []error
	runs   map[string]trigger.Run // that were begun and are not over, by session and ID
}

func newStory(t *rapid.T, app trigger.Application) *story {
	s := &story{t: t, app: app, ev: evaluator(t, app), runs: map[string]trigger.Run{}}
	for _, id := range sessions {
		s.happens(event{session: id, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) { return ev.Begin(now, id) }})
	}
	return s
}

// fataler is what tests and properties share.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func evaluator(t fataler, app trigger.Application) *trigger.Evaluator {
	t.Helper()
	ev, err := trigger.New(app)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func (s *story) happens(e event) {
	e.at = s.now
	out, err := e.do(s.ev, epoch.Add(e.at))
	s.events, s.said, s.errs = append(s.events, e), append(s.said, out), append(s.errs, err)
	for _, f := range out.Firings {
		s.runs[string(f.Session)+" "+string(f.ID)] = trigger.Run{Session: f.Session, ID: f.ID, Function: f.Function, Attempt: f.Attempt}
	}
}

func (s *story) session() trigger.Session { return rapid.SampledFrom(sessions).Draw(s.t, "session") }

func (s *story) put() {
	o := trigger.Object{Session: s.session(), Bucket: "in", Key: trigger.Key(fmt.Sprint("k", rapid.IntRange(0, 20).Draw(s.t, "key"))),
		Group: rapid.SampledFrom([]trigger.Group{"", "x", "y"}).Draw(s.t, "group"), Size: rapid.Int64Range(1, 2).Draw(s.t, "size")}
	if rapid.Bool().Draw(s.t, "has source") {
		o.Source.Invocation = trigger.Invocation(fmt.Sprint("i", rapid.IntRange(0, 5).Draw(s.t, "source")))
	}
	s.happens(event{session: o.Session, object: &o, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) { return ev.Put(now, o) }})
}

func (s *story) control() {
	id, source := s.session(), rapid.SampledFrom(controls).Draw(s.t, "control")
	of := trigger.GroupSet{Group: rapid.SampledFrom([]trigger.Group{"", "x", "y"}).Draw(s.t, "group"), All: rapid.Bool().Draw(s.t, "all")}
	s.happens(event{session: id, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) {
		return ev.Control(now, id, "group", source, of)
	}})
}

func (s *story) announce() {
	id, name := s.session(), rapid.SampledFrom([]trigger.Name{"join", "group"}).Draw(s.t, "trigger")
	keys := rapid.SampledFrom([][]trigger.Key{{}, {"k1", "k2"}, controls, controls[:1]}).Draw(s.t, "set")
	s.happens(event{session: id, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) {
		return ev.Announce(now, id, name, keys)
	}})
}

// started begins an invocation of the owner's.
func (s *story) started() {
	r := trigger.Run{Session: s.session(), ID: trigger.Invocation(fmt.Sprint("i", rapid.IntRange(0, 5).Draw(s.t, "run"))), Function: "src", Attempt: 1}
	if name := string(r.Session) + " " + string(r.ID); s.runs[name].ID == "" {
		s.runs[name] = r
	}
	s.happens(event{session: r.Session, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) { return ev.Started(now, r) }})
}

// over finishes or fails a run.
func (s *story) over() {
	if len(s.runs) == 0 {
		return
	}
	name := rapid.SampledFrom(sortedKeys(s.runs)).Draw(s.t, "run")
	s.finish(name, rapid.Bool().Draw(s.t, "fails"))
}

func (s *story) finish(name string, fails bool) {
	r := s.runs[name]
	delete(s.runs, name)
	s.happens(event{session: r.Session, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) {
		if fails {
			return ev.Failed(now, r, "exit 1")
		}
		return ev.Finished(now, r)
	}})
}

func (s *story) end() {
	if id := s.session(); rapid.IntRange(0, 9).Draw(s.t, "whether") == 0 {
		s.ends(id)
	} else if rapid.IntRange(0, 9).Draw(s.t, "whether cancelled") == 0 {
		s.happens(event{session: id, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) { return ev.Cancel(now, id, "") }})
	}
}

func (s *story) ends(id trigger.Session) {
	s.happens(event{session: id, do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) { return ev.End(now, id) }})
}

// tell draws what happens: little time passes between most events.
func (s *story) tell() *story {
	does := []func(){s.put, s.put, s.put, s.control, s.announce, s.started, s.over, s.end}
	for range rapid.IntRange(0, 80).Draw(s.t, "events") {
		s.now += time.Duration(rapid.SampledFrom([]int{0, 0, 1, 500, 1000, 7000}).Draw(s.t, "milliseconds")) * time.Millisecond
		does[rapid.IntRange(0, len(does)-1).Draw(s.t, "event")]()
	}
	return s
}

// conclude ends all sessions, and finishes all that runs, until nothing is open.
func (s *story) conclude() *story {
	for _, id := range sessions {
		s.ends(id)
	}
	for range 1000 {
		if across, err := s.ev.Pending(epoch, ""); s.ev.Sessions() == 0 && len(across) == 0 && err == nil {
			break
		}
		for _, name := range sortedKeys(s.runs) {
			s.finish(name, false)
		}
		if at, ok := s.ev.Deadline(); ok && len(s.runs) == 0 {
			s.now = at.Sub(epoch)
			s.happens(tick)
		}
	}
	return s
}

var tick = event{do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) { return ev.Tick(now), nil }}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// text is what was said altogether, in order.
func text(said []trigger.Output) string {
	var out strings.Builder
	for _, o := range said {
		out.WriteString(describe(o))
	}
	return out.String()
}

// What follows from events does not depend on when an evaluator is called besides, nor on whether one that was restored took its place.
func TestTicksAndRestoresChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		app := everything(t)
		s := newStory(t, app).tell().conclude()
		ev, said := s.disturb(func(ev *trigger.Evaluator, _ int) *trigger.Evaluator { return restored(t, app, ev) })
		if got, want := strings.Join(sortedLines(said), "\n"), strings.Join(sortedLines(s.said), "\n"); got != want {
			t.Fatalf("said\n%s\ninstead of\n%s", got, want)
		}
		if got, want := snapshot(t, ev), snapshot(t, s.ev); got != want {
			t.Fatalf("knows\n%s\ninstead of\n%s", got, want)
		}
	})
}

// The same with one that was told all events again: what it says twice has the same names, functions and objects.
func TestToldAgainSaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		app := everything(t)
		s := newStory(t, app).tell().conclude()
		ev, said := s.disturb(func(_ *trigger.Evaluator, i int) *trigger.Evaluator { return retold(t, app, s.events[:i]) })
		if got, want := slices.Compact(sortedLines(said)), slices.Compact(sortedLines(s.said)); !slices.Equal(got, want) {
			t.Fatalf("said\n%s\ninstead of\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if got, want := snapshot(t, ev), snapshot(t, s.ev); got != want {
			t.Fatalf("knows\n%s\ninstead of\n%s", got, want)
		}
	})
}

// disturb tells the story again, with ticks in between, and with evaluators that crash before some event and are succeeded.
func (s *story) disturb(successor func(ev *trigger.Evaluator, event int) *trigger.Evaluator) (ev *trigger.Evaluator, said []trigger.Output) {
	ev = successor(evaluator(s.t, s.app), 0)
	var now time.Duration
	for i, e := range s.events {
		for range rapid.IntRange(0, 2).Draw(s.t, "ticks") {
			now = time.Duration(rapid.Int64Range(int64(now), int64(e.at)).Draw(s.t, "tick"))
			said = append(said, ev.Tick(epoch.Add(now)))
		}
		now = e.at
		if rapid.IntRange(0, 20).Draw(s.t, "crash") == 0 {
			ev = successor(ev, i)
		}
		out, _ := e.do(ev, epoch.Add(e.at)) // some are refused, as they were before
		said = append(said, out)
	}
	return ev, said
}

// sortedLines is what was said, whichever event it was said at: ticks say earlier what the next event would have.
func sortedLines(said []trigger.Output) []string {
	lines := strings.Split(text(said), "\n")
	slices.Sort(lines)
	return lines
}

func snapshot(t fataler, ev *trigger.Evaluator) string {
	t.Helper()
	state, err := ev.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func restored(t fataler, app trigger.Application, ev *trigger.Evaluator) *trigger.Evaluator {
	t.Helper()
	var state trigger.Snapshot
	if err := json.Unmarshal([]byte(snapshot(t, ev)), &state); err != nil {
		t.Fatal(err)
	}
	ev, err := trigger.Restore(app, state)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// retold returns an evaluator that was told the events, whose output nobody heard.
func retold(t fataler, app trigger.Application, events []event) *trigger.Evaluator {
	t.Helper()
	ev := evaluator(t, app)
	for _, e := range events {
		_, _ = e.do(ev, epoch.Add(e.at)) // some are refused, as they were before
	}
	return ev
}

// A session says the same whatever happens in others, if no trigger takes them together.
func TestSessionsAreIsolated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		app := everything(t)
		app.Triggers = app.Triggers[2:]
		s := newStory(t, app).tell()
		for _, id := range sessions {
			ev := evaluator(t, app)
			var alone, together strings.Builder
			for i, e := range s.events {
				together.WriteString(linesOf(s.said[i], id))
				if e.session != id {
					alone.WriteString(linesOf(ev.Tick(epoch.Add(e.at)), id))
					continue
				}
				out, _ := e.do(ev, epoch.Add(e.at))
				alone.WriteString(linesOf(out, id))
			}
			if alone.String() != together.String() {
				t.Fatalf("session %s says\n%s\nbut alone\n%s", id, together.String(), alone.String())
			}
		}
	})
}

// linesOf are the lines that describe a session.
func linesOf(o trigger.Output, id trigger.Session) string {
	var out strings.Builder
	for line := range strings.Lines(describe(o)) {
		if strings.HasPrefix(line, string(id)+": ") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// ledger counts what became of objects and invocations.
type ledger struct {
	put     map[string]trigger.Object // that were accepted, by session and key
	fired   map[string]int            // by trigger, session and key
	ignored map[string]int
	ended   map[trigger.Session]trigger.Ended
}

func (s *story) ledger() ledger {
	l := ledger{map[string]trigger.Object{}, map[string]int{}, map[string]int{}, map[trigger.Session]trigger.Ended{}}
	attempts := map[string]int{}
	for i, out := range s.said {
		if o := s.events[i].object; o != nil && s.errs[i] == nil && !out.Duplicate {
			l.put[string(o.Session)+" "+string(o.Key)] = *o
		}
		for _, f := range out.Firings {
			name := string(f.Session) + " " + string(f.ID)
			if attempts[name]++; f.Trigger != "" && f.Attempt != attempts[name] {
				s.t.Fatalf("%s fires with attempt %d, after %d others", name, f.Attempt, attempts[name]-1)
			}
			for _, o := range f.Objects {
				l.fired[of(f.Trigger, o)]++
				if o.Session != f.Session && !strings.HasPrefix(string(f.Trigger), "across") {
					s.t.Fatalf("%s has an object of session %s", name, o.Session)
				}
			}
		}
		for _, ig := range out.Ignored {
			l.ignored[of(ig.Trigger, ig.Object)]++
		}
		for _, e := range out.Ended {
			if _, twice := l.ended[e.Session]; twice {
				s.t.Fatalf("session %s ends twice", e.Session)
			}
			l.ended[e.Session] = e
		}
	}
	return l
}

func of(name trigger.Name, o trigger.Object) string {
	return string(name) + " " + string(o.Session) + " " + string(o.Key)
}

// No object is lost: it fires once, or is ignored, or its session says that the trigger waits. No session stays open without work.
func TestNoObjectIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		app := everything(t)
		s := newStory(t, app).tell().conclude()
		if n := s.ev.Sessions(); n != 0 {
			t.Fatalf("%d sessions are stuck", n)
		}
		l := s.ledger()
		for id, e := range l.ended {
			if e.Outcome == trigger.OutcomeLimit {
				t.Fatalf("session %s: %s %s", id, e.Outcome, e.Why)
			}
		}
		for _, o := range l.put {
			for _, tr := range app.Triggers {
				l.check(t, tr, o)
			}
		}
	})
}

func (l ledger) check(t *rapid.T, tr trigger.Trigger, o trigger.Object) {
	fired, ignored, ended := l.fired[of(tr.Name, o)], l.ignored[of(tr.Name, o)], l.ended[o.Session]
	waits := slices.ContainsFunc(ended.Waiting, func(line string) bool { return strings.HasPrefix(line, "trigger "+string(tr.Name)+" ") })
	most := 1
	switch rule := tr.Rule.(type) {
	case trigger.ByTime:
		if rule.Slide > 0 {
			most = int(rule.Window / rule.Slide)
		}
	case trigger.ByName:
		if !strings.HasPrefix(string(o.Key), "k1") {
			most = 0
		}
	case trigger.BySet:
		if !slices.Contains(rule.Keys, o.Key) {
			most = 0
		}
	}
	lost := ended.Outcome == trigger.OutcomeCancelled || waits || most == 0
	if fired > most || ignored > 1 || fired*ignored > 0 || fired+ignored == 0 && !lost {
		t.Fatalf("trigger %s: object %s of session %s, which is %s, fired %d times, at most %d, was ignored %d times, is waited for: %v",
			tr.Name, o.Key, o.Session, ended.Outcome, fired, most, ignored, waits)
	}
}

// Whatever the order of objects, announcements and controls: the same invocations with the same objects. A control for a group comes after the
// objects of its source, which are all here.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		app := everything(t)
		app.Triggers = slices.DeleteFunc(app.Triggers, func(tr trigger.Trigger) bool {
			return !slices.Contains([]trigger.Name{"each", "named", "set", "join"}, tr.Name)
		})
		s := newStory(t, app)
		for range rapid.IntRange(0, 40).Draw(t, "objects") {
			s.put()
			s.events[len(s.events)-1].object.Size = 1
		}
		s.happens(event{session: "a", do: func(ev *trigger.Evaluator, now time.Time) (trigger.Output, error) {
			return ev.Announce(now, "a", "join", []trigger.Key{"k2", "k7"})
		}})
		begins, rest := s.events[:len(sessions)], s.events[len(sessions):]
		first := invocations(retell(t, app, s.events))
		second := invocations(retell(t, app, slices.Concat(begins, rapid.Permutation(rest).Draw(t, "order"))))
		if !slices.Equal(first, second) {
			t.Fatalf("%v in one order, %v in another", first, second)
		}
	})
}

func retell(t *rapid.T, app trigger.Application, events []event) (said []trigger.Output) {
	ev := evaluator(t, app)
	for _, e := range events {
		out, _ := e.do(ev, epoch)
		said = append(said, out)
	}
	return said
}

// invocations are the names of firings with their objects, sorted.
func invocations(said []trigger.Output) (names []string) {
	for _, out := range said {
		for _, f := range out.Firings {
			names = append(names, string(f.Session)+" "+string(f.ID)+" "+objects(f.Session, f.Objects))
		}
	}
	slices.Sort(names)
	return names
}
