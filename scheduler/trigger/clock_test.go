package trigger_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// However the clock jumps: each object is in one tumbling window, and a window ends after as much time as it lasts, by the steps forward.
func TestClockJumps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const window = 10 * time.Second
		ev := evaluator(t, trigger.Application{Name: "test", Functions: []trigger.Function{"f"}, Buckets: []trigger.Bucket{"in"},
			Triggers: []trigger.Trigger{{Name: "time", Bucket: "in", Function: "f", Rule: trigger.ByTime{Window: window}}}})
		now, passed := time.Duration(0), time.Duration(0)
		if _, err := ev.Begin(epoch, "a"); err != nil {
			t.Fatal(err)
		}
		at, seen := map[trigger.Key]time.Duration{}, map[trigger.Key]bool{}
		check := func(out trigger.Output) {
			for _, f := range out.Firings {
				for _, o := range f.Objects {
					if seen[o.Key] || at[f.Objects[len(f.Objects)-1].Key]-at[o.Key] > window {
						t.Fatalf("%v: %v", o.Key, describe(out))
					}
					seen[o.Key] = true
				}
			}
		}
		for i := range rapid.IntRange(1, 50).Draw(t, "events") {
			jump := time.Duration(rapid.SampledFrom([]int{0, 1, 3, 9, 10, 100, -1, -1000}).Draw(t, "jump")) * time.Second
			now, passed = now+jump, passed+max(0, jump)
			key := trigger.Key(fmt.Sprint("k", i))
			at[key] = passed
			out, err := ev.Put(epoch.Add(now), trigger.Object{Session: "a", Bucket: "in", Key: key})
			if err != nil {
				t.Fatal(err)
			}
			check(out)
			if due, ok := ev.Deadline(); !ok || due.Sub(epoch.Add(now)) > window {
				t.Fatalf("at %v the window ends at %v", now, due.Sub(epoch))
			}
		}
		check(ev.Tick(epoch.Add(now + window)))
		if len(seen) != len(at) {
			t.Fatalf("%d objects of %d were in a window", len(seen), len(at))
		}
	})
}
