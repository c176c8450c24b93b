package trigger_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// kinds is an application with a trigger of each kind, all of which watch src.
func kinds() trigger.Application {
	rerun := &trigger.Rerun{Source: "src", Timeout: 10 * time.Second, Attempts: 2, Backoff: time.Second}
	app := trigger.Application{Name: "test", Version: "v1", Functions: []trigger.Function{"f", "src"}, Buckets: []trigger.Bucket{"in"}}
	for _, rule := range []trigger.Rule{trigger.Immediate{}, trigger.ByName{Key: "x"}, trigger.ByBatchSize{N: 3, Timeout: time.Second},
		trigger.BySet{Keys: []trigger.Key{"x", "y"}}, trigger.Redundant{K: 2, N: 3}, trigger.ByTime{Window: 3 * time.Second, Slide: time.Second},
		trigger.DynamicJoin{}, trigger.DynamicGroup{Controls: []trigger.Key{"x", "y"}}} {
		app.Triggers = append(app.Triggers, trigger.Trigger{Name: trigger.Name(rule.Kind()), Bucket: "in", Function: "f", Rule: rule, Rerun: rerun})
	}
	return app
}

// busy returns an evaluator of kinds in the middle of session "a".
func busy(t fataler) *trigger.Evaluator {
	t.Helper()
	ev := evaluator(t, kinds())
	for _, do := range []func() (trigger.Output, error){
		func() (trigger.Output, error) { return ev.Begin(epoch, "a") },
		func() (trigger.Output, error) {
			return ev.Started(epoch, trigger.Run{Session: "a", ID: "i", Function: "src", Attempt: 1})
		},
		func() (trigger.Output, error) {
			return ev.Put(epoch, trigger.Object{Session: "a", Bucket: "in", Key: "x", Source: trigger.Source{Invocation: "i9"}})
		},
		func() (trigger.Output, error) {
			return ev.Announce(epoch, "a", "dynamic-join", []trigger.Key{"x", "y"})
		},
		func() (trigger.Output, error) {
			return ev.Control(epoch, "a", "dynamic-group", "x", trigger.GroupSet{Group: "g"})
		},
	} {
		if _, err := do(); err != nil {
			t.Fatal(err)
		}
	}
	return ev
}

// A snapshot goes to the version of the application that it is of only, and a damaged one is refused.
func TestRestoreRefuses(t *testing.T) {
	text := snapshot(t, busy(t))
	for _, c := range []struct {
		old, new string
		kind     error
	}{
		{`"version":"v1"`, `"version":"v2"`, trigger.ErrConflict},
		{`"application":"test"`, `"application":"other"`, trigger.ErrConflict},
		{`"trigger":"immediate"`, `"trigger":"nobody"`, trigger.ErrInvalid},
		{`"objects":[{"bucket":"in"`, `"objects":[{"bucket":"out"`, trigger.ErrInvalid},
		{`"missing":1`, `"missing":5`, trigger.ErrInvalid},
		{`"attempt":1`, `"attempt":0`, trigger.ErrInvalid},
		{`"fired":0`, `"fired":"no"`, trigger.ErrInvalid},
	} {
		damaged := strings.Replace(text, c.old, c.new, 1)
		var state trigger.Snapshot
		if err := json.Unmarshal([]byte(damaged), &state); err != nil || damaged == text {
			t.Fatalf("%s: %v in %s", c.new, err, text)
		}
		if _, err := trigger.Restore(kinds(), state); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", c.new, err)
		}
	}
}

// A damaged snapshot is refused, or makes an evaluator that works, whatever it says.
func FuzzRestore(f *testing.F) {
	f.Add(snapshot(f, busy(f)))
	f.Fuzz(restoreAndUse[*testing.T])
}

// The same with values in it that are of the right type, mostly.
func TestDamagedSnapshots(t *testing.T) {
	good := snapshot(t, busy(t))
	rapid.Check(t, func(t *rapid.T) {
		var state any
		decoder := json.NewDecoder(strings.NewReader(good))
		decoder.UseNumber()
		if err := decoder.Decode(&state); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(t, "damages") {
			state = damage(t, state)
		}
		text, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		restoreAndUse(t, string(text))
	})
}

// damage changes one value somewhere.
func damage(t *rapid.T, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if len(v) > 0 && rapid.IntRange(0, 9).Draw(t, "deeper") > 0 {
			k := rapid.SampledFrom(sortedKeys(v)).Draw(t, "member")
			v[k] = damage(t, v[k])
			return v
		}
	case []any:
		if len(v) > 0 && rapid.IntRange(0, 9).Draw(t, "deeper") > 0 {
			i := rapid.IntRange(0, len(v)-1).Draw(t, "element")
			v[i] = damage(t, v[i])
			return v
		}
	case json.Number:
		return rapid.OneOf(rapid.Int64(), rapid.Int64Range(-2, 5)).Draw(t, "number")
	case bool:
		return !v
	}
	return rapid.SampledFrom([]any{nil, "", "x", map[string]any{}, []any{}}).Draw(t, "value")
}

type errorer interface{ Error(...any) }

func restoreAndUse[T errorer](t T, text string) {
	var state trigger.Snapshot
	if json.Unmarshal([]byte(text), &state) != nil {
		return
	}
	ev, err := trigger.Restore(kinds(), state)
	if err != nil {
		if !errors.Is(err, trigger.ErrInvalid) && !errors.Is(err, trigger.ErrConflict) {
			t.Error(err)
		}
		return
	}
	now := time.Unix(0, state.Seen)
	if _, err := ev.Begin(now, "new"); err != nil {
		t.Error(err)
	}
	for _, id := range []trigger.Session{"a", "new"} {
		useAll(ev, now, id)
	}
	ev.Tick(now.Add(48 * time.Hour))
	if _, err := ev.Snapshot(); err != nil {
		t.Error(err)
	}
}

// useAll makes something of every kind happen to a session, which may be none.
func useAll(ev *trigger.Evaluator, now time.Time, id trigger.Session) {
	_, _ = ev.Pending(now, id)
	for _, k := range []trigger.Key{"x", "y", "z"} {
		_, _ = ev.Put(now, trigger.Object{Session: id, Bucket: "in", Key: k, Group: "g", Source: trigger.Source{Invocation: "i"}})
		_, _ = ev.Control(now, id, "dynamic-group", k, trigger.GroupSet{All: true})
	}
	_, _ = ev.Announce(now, id, "dynamic-join", []trigger.Key{"x", "y"})
	run := trigger.Run{Session: id, ID: "i", Function: "src", Attempt: 1}
	_, _ = ev.Started(now, run)
	ev.Tick(now.Add(time.Minute))
	_, _ = ev.Failed(now, run, "exit 1")
	_, _ = ev.Finished(now, run)
	_, _ = ev.End(now, id)
}

// Whatever its type, a trigger runs a source again that put nothing, and gives up at last; one that put something is left alone.
func TestEveryTypeReruns(t *testing.T) {
	for _, tr := range kinds().Triggers {
		t.Run(string(tr.Name), func(t *testing.T) {
			app := kinds()
			app.Triggers = []trigger.Trigger{tr}
			s := &script{ev: evaluator(t, app)}
			var said strings.Builder
			for _, line := range []string{"begin a", "started a src i1 i2", "put a x by=i1", "finished a src i1 i2", "at 10s", "at 11s", "finished a src i2 attempt=2", "at 21s"} {
				said.WriteString(s.run(strings.Fields(line)))
			}
			var reruns []string
			for line := range strings.Lines(said.String()) {
				if strings.Contains(line, "src") {
					reruns = append(reruns, strings.TrimSpace(line))
				}
			}
			want := []string{"a: i2 runs src, attempt 2, with  []",
				"a: dead letter i2 of src: put nothing for trigger " + string(tr.Name) + " within 10s, attempt 2 of 2"}
			if got := strings.Join(reruns, "\n"); got != strings.Join(want, "\n") {
				t.Errorf("says\n%s", said.String())
			}
		})
	}
}
