package trigger

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Application is what an evaluator works for.
type Application struct {
	Name      string
	Version   string // digest of the declaration; a snapshot is restored into the same version only
	Functions []Function
	Buckets   []Bucket
	Triggers  []Trigger // evaluated in this order
	Limits    Limits
}

// Trigger says when objects in a bucket make a function run.
type Trigger struct {
	Name     Name
	Bucket   Bucket
	Function Function
	Rule     Rule
	Gets     Gets   // default values
	Scope    Scope  // default session
	Rerun    *Rerun // nil: the trigger watches nobody
}

// Rule says when a trigger fires: Immediate, ByName, ByBatchSize, BySet, Redundant, ByTime, DynamicJoin or DynamicGroup.
type Rule interface {
	// Kind is the rule's name in declarations, as "by-set".
	Kind() string
	// check reports what cannot be, each by the name of its parameter.
	check(report func(parameter, what string))
	// prepare returns the rule as evaluators need it. It is called once it is checked.
	prepare() prepared
}

// Gets says what of the objects a function gets.
type Gets string

const (
	GetsValues Gets = "values"
	GetsKeys   Gets = "keys"
	GetsBoth   Gets = "both"
)

// Scope says whose objects a trigger takes together.
type Scope string

const (
	// ScopeSession keeps sessions apart.
	ScopeSession Scope = "session"
	// ScopeApplication takes the objects of all sessions together. Each firing is a session of its own. For ByBatchSize and ByTime only.
	ScopeApplication Scope = "application"
)

// Rerun says what happens if a function does not deliver: put an object that the trigger takes.
type Rerun struct {
	// Source is the function that is watched.
	Source Function
	// Timeout is how long it has to deliver, from its firing, and again from its start.
	Timeout time.Duration
	// Attempts bounds how often it runs, the first time included; after that it is a dead letter. 1 to 100.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles with each one after, up to five minutes. 0: at once.
	Backoff time.Duration
}

const (
	maxAttempts = 100
	maxBackoff  = 5 * time.Minute
	maxTime     = 366 * 24 * time.Hour // of anything, so that sums do not overflow
)

// wait returns the back-off after an attempt.
func (r *Rerun) wait(attempt int) time.Duration {
	wait := r.Backoff
	for ; attempt > 1 && wait < maxBackoff; attempt-- {
		wait *= 2
	}
	return min(wait, max(maxBackoff, r.Backoff))
}

// Limits bound a session; the session is over when it would exceed one. Zero is the default.
type Limits struct {
	Objects int           // default 1,000,000
	Bytes   int64         // of all objects together. Default 1 TiB
	Steps   int           // invocations, the owner's and further attempts included. Default 100,000
	Time    time.Duration // from its beginning. Default 24h
}

func (l Limits) withDefaults() Limits {
	if l.Objects == 0 {
		l.Objects = 1_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 1 << 40
	}
	if l.Steps == 0 {
		l.Steps = 100_000
	}
	if l.Time == 0 {
		l.Time = 24 * time.Hour
	}
	return l
}

// Problem is something that cannot be, and its place in the declaration, as "triggers.join.keys".
type Problem struct{ Place, What string }

func (p Problem) String() string { return p.Place + ": " + p.What }

// Problems is an error of kind ErrInvalid.
type Problems []Problem

// Error lists them in one line; beyond twenty it says only how many there are.
func (p Problems) Error() string {
	const most = 20
	var lines []string
	for _, problem := range p[:min(len(p), most)] {
		lines = append(lines, problem.String())
	}
	if len(p) > most {
		lines = append(lines, fmt.Sprintf("and %d more", len(p)-most))
	}
	return strings.Join(lines, "; ")
}

// Unwrap makes it an ErrInvalid.
func (p Problems) Unwrap() error { return ErrInvalid }

var validName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?$`)

// Validate returns all that cannot be, as Problems.
func (a *Application) Validate() error {
	var found Problems
	report := func(place, what string) { found = append(found, Problem{place, what}) }
	checkName(report, "name", a.Name)
	for _, f := range a.Functions {
		checkName(report, place("functions", string(f)), string(f))
	}
	for _, b := range a.Buckets {
		checkName(report, place("buckets", string(b)), string(b))
	}
	a.Limits.check(report)
	seen := map[Name]bool{}
	for i := range a.Triggers {
		t := &a.Triggers[i]
		at := func(field, what string) { report(place("triggers", string(t.Name))+field, what) }
		if seen[t.Name] {
			at("", "declared twice")
		}
		seen[t.Name] = true
		a.checkTrigger(t, at)
	}
	if len(found) == 0 {
		return nil
	}
	return found
}

// place names something of the declaration in one line, whatever its name is.
func place(what, name string) string {
	if validName.MatchString(name) {
		return what + "." + name
	}
	return fmt.Sprintf("%s.%.80q", what, name)
}

func checkName(report func(place, what string), place, name string) {
	if !validName.MatchString(name) {
		report(place, fmt.Sprintf("name %.80q: want 1 to 64 letters, digits, '-', '_' and '.', with a letter or digit at both ends", name))
	}
}

func (l Limits) check(report func(place, what string)) {
	for _, limit := range []struct {
		name  string
		value int64
	}{{"objects", int64(l.Objects)}, {"bytes", l.Bytes}, {"steps", int64(l.Steps)}, {"time", int64(l.Time)}} {
		if limit.value < 0 {
			report("limits."+limit.name, "is negative")
		}
	}
	if l.Time > maxTime {
		report("limits.time", fmt.Sprintf("%v, want at most %v", l.Time, maxTime))
	}
}

func (a *Application) checkTrigger(t *Trigger, at func(field, what string)) {
	checkName(at, "", string(t.Name))
	switch {
	case t.Bucket == "":
		at(".bucket", "a trigger needs a bucket")
	case !slices.Contains(a.Buckets, t.Bucket):
		at(".bucket", fmt.Sprintf("there is no bucket %.80q", t.Bucket))
	}
	a.checkFunction(at, ".function", t.Function)
	switch t.Gets {
	case "", GetsValues, GetsKeys, GetsBoth:
	default:
		at(".gets", fmt.Sprintf("%.80q, want %q, %q or %q", t.Gets, GetsValues, GetsKeys, GetsBoth))
	}
	if t.Rerun != nil {
		a.checkRerun(t.Rerun, func(field, what string) { at(".rerun"+field, what) })
	}
	t.checkScope(at)
	if t.Rule == nil {
		at(".type", "a trigger needs a type")
		return
	}
	t.Rule.check(func(parameter, what string) { at("."+parameter, what) })
	if r, ok := t.Rule.(Redundant); ok && r.Rest == RestCancel && t.Rerun == nil {
		at(".rest", `"cancel" needs rerun.source: else it is not known whom to cancel`)
	}
}

func (t *Trigger) checkScope(at func(field, what string)) {
	switch t.Scope {
	case "", ScopeSession:
	case ScopeApplication:
		switch rule := t.Rule.(type) {
		case ByBatchSize:
			if rule.Timeout == 0 {
				at(".timeout", "is needed across sessions: there is no end that would fire with an incomplete batch")
			}
		case ByTime, nil:
		default:
			at(".scope", "only by-batch-size and by-time can take sessions together")
		}
	default:
		at(".scope", fmt.Sprintf("%.80q, want %q or %q", t.Scope, ScopeSession, ScopeApplication))
	}
}

func (a *Application) checkFunction(at func(field, what string), field string, f Function) {
	switch {
	case f == "":
		at(field, "needs a function")
	case !slices.Contains(a.Functions, f):
		at(field, fmt.Sprintf("there is no function %.80q", f))
	}
}

func (a *Application) checkRerun(r *Rerun, at func(field, what string)) {
	a.checkFunction(at, ".source", r.Source)
	if r.Timeout <= 0 || r.Timeout > maxTime {
		at(".timeout", fmt.Sprintf("%v, must be more than 0, at most %v", r.Timeout, maxTime))
	}
	if r.Attempts < 1 || r.Attempts > maxAttempts {
		at(".attempts", fmt.Sprintf("%d, want 1 to %d", r.Attempts, maxAttempts))
	}
	if r.Backoff < 0 || r.Backoff > maxTime {
		at(".backoff", fmt.Sprintf("%v, want 0 to %v", r.Backoff, maxTime))
	}
}
