package app

import (
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// fileTrigger is a trigger as it is written. Parameters that not all types have are nil if they are not there.
type fileTrigger struct {
	Type     string           `toml:"type"`
	Bucket   trigger.Bucket   `toml:"bucket"`
	Function trigger.Function `toml:"function"`
	Gets     trigger.Gets     `toml:"gets"`
	Scope    trigger.Scope    `toml:"scope"`
	Rerun    *fileRerun       `toml:"rerun"`

	Key      *string       `toml:"key"`
	Keys     []trigger.Key `toml:"keys"`
	K        *int          `toml:"k"`
	N        *int          `toml:"n"`
	Rest     *trigger.Rest `toml:"rest"`
	Timeout  *string       `toml:"timeout"`
	Window   *string       `toml:"window"`
	Slide    *string       `toml:"slide"`
	Controls []trigger.Key `toml:"controls"`
}

type fileRerun struct {
	Source   trigger.Function `toml:"source"`
	Timeout  string           `toml:"timeout"`
	Attempts *int             `toml:"attempts"`
	Backoff  string           `toml:"backoff"`
}

const defaultAttempts = 3

func (f fileTrigger) trigger(name string, p *problems) trigger.Trigger {
	at := func(parts ...string) string { return path(append(toml.Key{"triggers", name}, parts...)) }
	t := trigger.Trigger{Name: trigger.Name(name), Bucket: f.Bucket, Function: f.Function, Gets: or(f.Gets, trigger.GetsValues), Scope: or(f.Scope, trigger.ScopeSession)}
	t.Rule = f.rule(at, p)
	if r := f.Rerun; r != nil {
		t.Rerun = &trigger.Rerun{Source: r.Source, Timeout: p.duration(at("rerun", "timeout"), r.Timeout), Attempts: defaultAttempts,
			Backoff: p.duration(at("rerun", "backoff"), r.Backoff)}
		if r.Attempts != nil {
			t.Rerun.Attempts = *r.Attempts
		}
	}
	return t
}

func or[T ~string](value, otherwise T) T {
	if value == "" {
		return otherwise
	}
	return value
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// rule returns the rule, nil if there is none of that type.
func (f fileTrigger) rule(at func(...string) string, p *problems) trigger.Rule {
	timeout, window, slide := p.duration(at("timeout"), value(f.Timeout)), p.duration(at("window"), value(f.Window)), p.duration(at("slide"), value(f.Slide))
	if slide == 0 {
		slide = window
	}
	known := []struct {
		rule       trigger.Rule
		parameters string
	}{
		{trigger.Immediate{}, ""},
		{trigger.ByName{Key: value(f.Key)}, "key"},
		{trigger.ByBatchSize{N: value(f.N), Timeout: timeout}, "n timeout"},
		{trigger.BySet{Keys: f.Keys}, "keys"},
		{trigger.Redundant{K: value(f.K), N: value(f.N), Rest: or(value(f.Rest), trigger.RestIgnore)}, "k n rest"},
		{trigger.ByTime{Window: window, Slide: slide}, "window slide"},
		{trigger.DynamicJoin{}, ""},
		{trigger.DynamicGroup{Controls: f.Controls}, "controls"},
	}
	var names []string
	for _, k := range known {
		if k.rule.Kind() == f.Type {
			f.checkParameters(strings.Fields(k.parameters), at, p)
			return k.rule
		}
		names = append(names, k.rule.Kind())
	}
	if f.Type != "" {
		p.add(at("type"), "there is no type %.80q, only %s", f.Type, strings.Join(names, ", "))
	}
	return nil
}

// checkParameters reports those that the type does not have.
func (f fileTrigger) checkParameters(has []string, at func(...string) string, p *problems) {
	for _, parameter := range []struct {
		name  string
		given bool
	}{{"key", f.Key != nil}, {"keys", f.Keys != nil}, {"k", f.K != nil}, {"n", f.N != nil}, {"rest", f.Rest != nil}, {"timeout", f.Timeout != nil},
		{"window", f.Window != nil}, {"slide", f.Slide != nil}, {"controls", f.Controls != nil}} {
		if parameter.given && !slices.Contains(has, parameter.name) {
			p.add(at(parameter.name), "%s has no such parameter", f.Type)
		}
	}
}
