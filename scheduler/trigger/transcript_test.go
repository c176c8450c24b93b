package trigger_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

var rewrite = flag.Bool("rewrite", false, "write what the commands of the transcripts say now into testdata")

// A transcript is a list of commands, each followed by a line "----" and what it said, up to an empty line. The commands are
// the methods of script below.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s: says now\n%s", file, got)
			}
		})
	}
}

// play runs the commands of a transcript and returns it with what they say.
func play(text string) string {
	s := &script{}
	var out strings.Builder
	for _, part := range strings.Split(strings.TrimSpace(text), "\n\n") {
		input, _, isCommand := strings.Cut(part, "\n----")
		out.WriteString(input + "\n")
		if isCommand {
			out.WriteString("----\n")
			for line := range strings.SplitSeq(input, "\n") {
				if !strings.HasPrefix(line, "#") {
					out.WriteString(s.run(strings.Fields(line)))
				}
			}
		}
		out.WriteString("\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// script holds what the commands of a transcript work on.
type script struct {
	app      trigger.Application // what is being declared
	declared trigger.Application // what was started
	ev       *trigger.Evaluator
	now      time.Duration
}

var epoch = time.Unix(1_000_000_000, 0).UTC()

func (s *script) time() time.Time { return epoch.Add(s.now) }

func (s *script) run(words []string) string {
	commands := map[string]func(arguments) (string, error){
		"trigger": s.trigger, "limits": s.limits, "start": s.start, "at": s.at, "deadline": s.deadline, "pending": s.pending,
		"begin": s.begin, "end": s.end, "cancel": s.cancel, "put": s.put, "announce": s.announce, "control": s.control,
		"started": s.started, "finished": s.finished, "failed": s.failed, "snapshot": s.snapshot,
	}
	command := commands[words[0]]
	if command == nil {
		return "no command " + words[0] + "\n"
	}
	out, err := command(parse(words[1:]))
	if err != nil {
		out += "error: " + err.Error() + "\n"
	}
	return out
}

// arguments are words, and values by their names.
type arguments struct {
	words []string
	named map[string]string
}

func parse(words []string) arguments {
	a := arguments{named: map[string]string{}}
	for _, w := range words {
		if name, value, ok := strings.Cut(w, "="); ok {
			a.named[name] = value
		} else {
			a.words = append(a.words, w)
		}
	}
	return a
}

func (a arguments) number(name string) int {
	n, _ := strconv.Atoi(a.named[name])
	return n
}

func (a arguments) duration(name string) time.Duration {
	d, _ := time.ParseDuration(a.named[name])
	return d
}

func (a arguments) keys(from int) (keys []trigger.Key) {
	for _, w := range a.words[from:] {
		keys = append(keys, trigger.Key(w))
	}
	return keys
}

// trigger declares one: "trigger NAME TYPE KEY..." and its parameters. Its bucket is "in", its function "f", if it does not say.
func (s *script) trigger(a arguments) (string, error) {
	rules := map[string]trigger.Rule{
		"immediate": trigger.Immediate{}, "by-name": trigger.ByName{Key: a.named["key"]},
		"by-batch-size": trigger.ByBatchSize{N: a.number("n"), Timeout: a.duration("timeout")}, "by-set": trigger.BySet{Keys: a.keys(2)},
		"redundant":    trigger.Redundant{K: a.number("k"), N: a.number("n"), Rest: trigger.Rest(a.named["rest"])},
		"by-time":      trigger.ByTime{Window: a.duration("window"), Slide: a.duration("slide")},
		"dynamic-join": trigger.DynamicJoin{}, "dynamic-group": trigger.DynamicGroup{Controls: a.keys(2)},
	}
	t := trigger.Trigger{Name: trigger.Name(a.words[0]), Rule: rules[a.words[1]], Bucket: "in", Function: "f",
		Scope: trigger.Scope(a.named["scope"]), Gets: trigger.Gets(a.named["gets"])}
	if b := a.named["bucket"]; b != "" {
		t.Bucket = trigger.Bucket(b)
	}
	if f := a.named["function"]; f != "" {
		t.Function = trigger.Function(f)
	}
	if source := a.named["source"]; source != "" {
		t.Rerun = &trigger.Rerun{Source: trigger.Function(source), Timeout: a.duration("within"), Attempts: a.number("attempts"), Backoff: a.duration("backoff")}
	}
	s.app.Triggers = append(s.app.Triggers, t)
	return "", nil
}

func (s *script) limits(a arguments) (string, error) {
	s.app.Limits = trigger.Limits{Objects: a.number("objects"), Bytes: int64(a.number("bytes")), Steps: a.number("steps"), Time: a.duration("time")}
	return "", nil
}

// start makes an evaluator of what was declared, and begins the sessions that are named.
func (s *script) start(a arguments) (out string, err error) {
	s.app.Name, s.app.Version = "test", "v1"
	s.app.Functions = []trigger.Function{"f", "g", "src"}
	s.app.Buckets = []trigger.Bucket{"in", "mid", "out"}
	s.declared = s.app
	s.app, s.now = trigger.Application{}, 0
	if s.ev, err = trigger.New(s.declared); err != nil {
		return "", err
	}
	return s.begin(a)
}

// at says what time it is, and lets it pass up to then; "at 5s quietly" only says so.
func (s *script) at(a arguments) (out string, err error) {
	if s.now, err = time.ParseDuration(a.words[0]); err != nil || len(a.words) > 1 {
		return "", err
	}
	return describe(s.ev.Tick(s.time())), nil
}

func (s *script) deadline(arguments) (string, error) {
	at, ok := s.ev.Deadline()
	if !ok {
		return "none\n", nil
	}
	return at.Sub(epoch).String() + "\n", nil
}

// pending says "pending SESSION"; without one, the triggers across sessions.
func (s *script) pending(a arguments) (string, error) {
	lines, err := s.ev.Pending(s.time(), trigger.Session(strings.Join(a.words, "")))
	return lined(lines), err
}

func lined(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// each does an event for each of the words.
func each(words []string, do func(word string) (trigger.Output, error)) (string, error) {
	var out strings.Builder
	var errs []error
	for _, w := range words {
		o, err := do(w)
		out.WriteString(describe(o))
		errs = append(errs, err)
	}
	return out.String(), errors.Join(errs...)
}

func (s *script) begin(a arguments) (string, error) {
	return each(a.words, func(w string) (trigger.Output, error) { return s.ev.Begin(s.time(), trigger.Session(w)) })
}

func (s *script) end(a arguments) (string, error) {
	return each(a.words, func(w string) (trigger.Output, error) { return s.ev.End(s.time(), trigger.Session(w)) })
}

func (s *script) cancel(a arguments) (string, error) {
	return each(a.words, func(w string) (trigger.Output, error) {
		return s.ev.Cancel(s.time(), trigger.Session(w), "its user says so")
	})
}

// put says "put SESSION KEY...".
func (s *script) put(a arguments) (string, error) {
	o := trigger.Object{Session: trigger.Session(a.words[0]), Bucket: "in", Size: int64(a.number("size")), Digest: a.named["digest"],
		Group: trigger.Group(a.named["group"]), Source: trigger.Source{Invocation: trigger.Invocation(a.named["by"])}}
	if b := a.named["bucket"]; b != "" {
		o.Bucket = trigger.Bucket(b)
	}
	return each(a.words[1:], func(w string) (trigger.Output, error) {
		o.Key = trigger.Key(w)
		return s.ev.Put(s.time(), o)
	})
}

// announce says "announce SESSION TRIGGER KEY...".
func (s *script) announce(a arguments) (string, error) {
	out, err := s.ev.Announce(s.time(), trigger.Session(a.words[0]), trigger.Name(a.words[1]), a.keys(2))
	return describe(out), err
}

// control says "control SESSION TRIGGER SOURCE group=GROUP"; without a group, all.
func (s *script) control(a arguments) (string, error) {
	group, ok := a.named["group"]
	out, err := s.ev.Control(s.time(), trigger.Session(a.words[0]), trigger.Name(a.words[1]), trigger.Key(a.words[2]),
		trigger.GroupSet{Group: trigger.Group(group), All: !ok})
	return describe(out), err
}

// runs says "started SESSION FUNCTION INVOCATION... attempt=1".
func (s *script) runs(a arguments, do func(trigger.Run) (trigger.Output, error)) (string, error) {
	return each(a.words[2:], func(w string) (trigger.Output, error) {
		return do(trigger.Run{Session: trigger.Session(a.words[0]), Function: trigger.Function(a.words[1]), ID: trigger.Invocation(w), Attempt: max(1, a.number("attempt"))})
	})
}

func (s *script) started(a arguments) (string, error) {
	return s.runs(a, func(r trigger.Run) (trigger.Output, error) { return s.ev.Started(s.time(), r) })
}

func (s *script) finished(a arguments) (string, error) {
	return s.runs(a, func(r trigger.Run) (trigger.Output, error) { return s.ev.Finished(s.time(), r) })
}

func (s *script) failed(a arguments) (string, error) {
	return s.runs(a, func(r trigger.Run) (trigger.Output, error) { return s.ev.Failed(s.time(), r, "exit 1") })
}

// snapshot prints the JSON, an array's objects a line each, and goes on with an evaluator that was restored from it.
func (s *script) snapshot(arguments) (string, error) {
	state, err := s.ev.Snapshot()
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(state)
	if err != nil {
		return "", err
	}
	var back trigger.Snapshot
	if err := json.Unmarshal(text, &back); err != nil {
		return "", err
	}
	s.ev, err = trigger.Restore(s.declared, back)
	return strings.ReplaceAll(string(text), "[{", "[\n  {") + "\n", err
}

func describe(o trigger.Output) string {
	var out strings.Builder
	if o.Duplicate {
		out.WriteString("duplicate\n")
	}
	for _, f := range o.Firings {
		fmt.Fprintf(&out, "%s: %s runs %s", f.Session, f.ID, f.Function)
		if f.Attempt != 1 {
			fmt.Fprintf(&out, ", attempt %d", f.Attempt)
		}
		fmt.Fprintf(&out, ", with %s %s\n", f.Gets, objects(f.Session, f.Objects))
	}
	for _, i := range o.Ignored {
		fmt.Fprintf(&out, "%s: %s ignores %s: %s\n", i.Object.Session, i.Trigger, i.Object.Key, i.Why)
	}
	for _, c := range o.Cancels {
		fmt.Fprintf(&out, "%s: cancel %s of %s: %s\n", c.Session, c.ID, c.Function, c.Why)
	}
	for _, d := range o.DeadLetters {
		fmt.Fprintf(&out, "%s: dead letter %s of %s: %s\n", d.Session, d.ID, d.Function, d.Why)
	}
	for _, e := range o.Ended {
		fmt.Fprintf(&out, "%s: ended: %s %s\n", e.Session, e.Outcome, e.Why)
		for _, w := range e.Waiting {
			fmt.Fprintf(&out, "  %s\n", w)
		}
	}
	return out.String()
}

// objects lists keys, with the sessions of those that are not of this one.
func objects(session trigger.Session, list []trigger.Object) string {
	names := []string{}
	for _, o := range list {
		name := string(o.Key)
		if o.Session != session {
			name = string(o.Session) + ":" + name
		}
		names = append(names, name)
	}
	return "[" + strings.Join(names, " ") + "]"
}
