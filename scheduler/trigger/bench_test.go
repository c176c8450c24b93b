package trigger_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// BenchmarkMix puts objects into eight buckets with a trigger of each kind, in sessions of 800 objects, and reports the ends of all that fires. Two
// evaluators share the sessions, as two coordinators do.
func BenchmarkMix(b *testing.B) { benchmarkMix(b, false) }

// BenchmarkMixWatched is the same with a source for each eight objects, whose start and end are reported, and which all triggers watch.
func BenchmarkMixWatched(b *testing.B) { benchmarkMix(b, true) }

func benchmarkMix(b *testing.B, watched bool) {
	const evaluators = 2
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range evaluators {
		wg.Go(func() {
			m := newMix(b, watched)
			for put := 0; put < b.N/evaluators; put += m.session() {
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

const perBucket = 100

// mix runs sessions of the same objects.
type mix struct {
	b        *testing.B
	ev       *trigger.Evaluator
	app      trigger.Application
	keys     [perBucket]trigger.Key
	now      time.Time
	sessions int
	watched  bool
}

func newMix(b *testing.B, watched bool) *mix {
	m := &mix{b: b, now: epoch, watched: watched}
	for i := range m.keys {
		m.keys[i] = trigger.Key(fmt.Sprint("part-", i))
	}
	var rerun *trigger.Rerun
	if watched {
		rerun = &trigger.Rerun{Source: "src", Timeout: time.Minute, Attempts: 3}
	}
	m.app = trigger.Application{Name: "mix", Functions: []trigger.Function{"f", "src"}}
	for _, rule := range []trigger.Rule{trigger.Immediate{}, trigger.ByName{Key: "part-*"}, trigger.ByBatchSize{N: 30, Timeout: time.Second},
		trigger.BySet{Keys: m.keys[:]}, trigger.Redundant{K: 2, N: 3}, trigger.ByTime{Window: 50 * time.Millisecond}, trigger.DynamicJoin{},
		trigger.DynamicGroup{Controls: []trigger.Key{"m"}}} {
		name := rule.Kind()
		m.app.Buckets = append(m.app.Buckets, trigger.Bucket(name))
		m.app.Triggers = append(m.app.Triggers, trigger.Trigger{Name: trigger.Name(name), Bucket: trigger.Bucket(name), Function: "f", Rule: rule, Rerun: rerun})
	}
	m.ev = evaluator(b, m.app)
	return m
}

// session runs one, and returns how many objects it put.
func (m *mix) session() int {
	m.sessions++
	id := trigger.Session(fmt.Sprint("s", m.sessions))
	m.must(m.ev.Begin(m.now, id))
	for i, k := range m.keys {
		source := trigger.Run{Session: id, ID: trigger.Invocation(k), Function: "src", Attempt: 1}
		if m.watched {
			m.must(m.ev.Started(m.now, source))
		}
		m.now = m.now.Add(time.Millisecond)
		for _, b := range m.app.Buckets {
			m.must(m.ev.Put(m.now, trigger.Object{Session: id, Bucket: b, Key: k, Size: 100, Group: trigger.Group(m.keys[i%10]), Source: trigger.Source{Invocation: source.ID}}))
		}
		if m.watched {
			m.must(m.ev.Finished(m.now, source))
		}
	}
	m.must(m.ev.Announce(m.now, id, "dynamic-join", m.keys[:]))
	m.must(m.ev.Control(m.now, id, "dynamic-group", "m", trigger.GroupSet{All: true}))
	m.must(m.ev.End(m.now, id))
	if n := m.ev.Sessions(); n != 0 {
		m.b.Errorf("%d sessions are open", n)
	}
	return perBucket * len(m.app.Buckets)
}

// must finishes what fires.
func (m *mix) must(out trigger.Output, err error) {
	if err != nil {
		m.b.Error(err)
	}
	for _, f := range out.Firings {
		m.must(m.ev.Finished(m.now, trigger.Run{Session: f.Session, ID: f.ID, Function: f.Function, Attempt: f.Attempt}))
	}
}

// BenchmarkOpenSessions is the same with a hundred thousand sessions open, each with a timer of a batch and one of its limit.
func BenchmarkOpenSessions(b *testing.B) {
	const open = 100_000
	m := newMix(b, false)
	ids := make([]trigger.Session, open)
	for i := range ids {
		ids[i] = trigger.Session(fmt.Sprint("open", i))
		m.must(m.ev.Begin(m.now, ids[i]))
	}
	keys := make([]trigger.Key, b.N/open+1)
	for i := range keys {
		keys[i] = trigger.Key(fmt.Sprint("k", i))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m.now = m.now.Add(time.Microsecond)
		m.must(m.ev.Put(m.now, trigger.Object{Session: ids[i%open], Bucket: "by-batch-size", Key: keys[i/open], Size: 100}))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}
