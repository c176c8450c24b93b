package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// Limits of a declaration.
const (
	MaxSize  = 1 << 20 // bytes
	maxNames = 1000    // of functions, of buckets, of triggers
	maxPuts  = 10_000  // of all functions together
)

// Application is a declaration that is valid.
type Application struct {
	trigger.Application
	Puts   map[trigger.Function][]trigger.Bucket // what functions put into, sorted
	Inputs []trigger.Bucket                      // that objects come into from outside, sorted
}

// file is a declaration as it is written. Times are strings, so that all that are wrong are found.
type file struct {
	Name   string `toml:"name"`
	Limits struct {
		Objects int    `toml:"objects"`
		Bytes   int64  `toml:"bytes"`
		Steps   int    `toml:"steps"`
		Time    string `toml:"time"`
	} `toml:"limits"`
	Functions map[string]struct {
		Puts []trigger.Bucket `toml:"puts"`
	} `toml:"functions"`
	Buckets map[string]struct {
		Input bool `toml:"input"`
	} `toml:"buckets"`
	Triggers map[string]fileTrigger `toml:"triggers"`
}

// problems collects what is wrong.
type problems struct{ found trigger.Problems }

func (p *problems) add(place, format string, args ...any) {
	p.found = append(p.found, trigger.Problem{Place: place, What: fmt.Sprintf(format, args...)})
}

// duration reads a time; "" is none.
func (p *problems) duration(place, text string) time.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		p.add(place, "%.80q is no time, want one like \"1m30s\"", text)
	}
	return d
}

// Parse reads a declaration. The error is of kind trigger.ErrInvalid and names the places of all that is wrong.
func Parse(text []byte) (*Application, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("declaration: %w: %d bytes, at most %d", trigger.ErrInvalid, len(text), MaxSize)
	}
	p := &problems{}
	f, err := decode(text, p)
	if err != nil {
		return nil, fmt.Errorf("declaration: %w", err)
	}
	a := f.application(p)
	a.check(p)
	if err := a.Validate(); err != nil {
		var more trigger.Problems
		errors.As(err, &more)
		p.found = append(p.found, more...)
	}
	if len(p.found) > 0 {
		p.sort()
		return nil, fmt.Errorf("declaration: %w", p.found)
	}
	a.Version, err = a.version()
	return a, err
}

// sort brings problems into the order of their places, and leaves out those of values that could not even be read.
func (p *problems) sort() {
	slices.SortStableFunc(p.found, func(a, b trigger.Problem) int { return strings.Compare(a.Place, b.Place) })
	p.found = slices.CompactFunc(p.found, func(a, b trigger.Problem) bool { return a.Place == b.Place })
}

// decode reads the TOML. Unknown names are problems; what is no TOML, or a value of the wrong kind, is an error.
func decode(text []byte, p *problems) (f file, err error) {
	err = toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&f)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case err == nil:
	case errors.As(err, &unknown):
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			p.add(path(e.Key()), "line %d: there is no such setting", line)
		}
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		where := fmt.Sprintf("line %d, column %d", line, column)
		if len(wrong.Key()) > 0 {
			where += ", " + path(wrong.Key())
		}
		what := oneLine(strings.TrimPrefix(wrong.Error(), "toml: "))
		if kind, _, ok := strings.Cut(what, " into "); ok { // a type of Go, which no user knows
			what = kind + " here"
		}
		return f, fmt.Errorf("%w: %s: %s", trigger.ErrInvalid, where, what)
	default:
		return f, fmt.Errorf("%w: %s", trigger.ErrInvalid, oneLine(strings.TrimPrefix(err.Error(), "toml: ")))
	}
	return f, nil
}

// path writes a key with its parts that are no bare keys in quotes.
func path(key toml.Key) string {
	parts := make([]string, len(key))
	for i, part := range key {
		parts[i] = part
		if strings.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r > '~' || r == '.' || r == '"' }) || part == "" || len(part) > 80 {
			parts[i] = fmt.Sprintf("%.80q", part)
		}
	}
	return strings.Join(parts, ".")
}

// oneLine makes a message of others fit into one of ours.
func oneLine(text string) string {
	quoted := fmt.Sprintf("%.300q", text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func (f file) application(p *problems) *Application {
	a := &Application{Puts: map[trigger.Function][]trigger.Bucket{}}
	a.Name = f.Name
	a.Limits = trigger.Limits{Objects: f.Limits.Objects, Bytes: f.Limits.Bytes, Steps: f.Limits.Steps, Time: p.duration("limits.time", f.Limits.Time)}
	for _, name := range sorted(f.Functions) {
		function := trigger.Function(name)
		a.Functions = append(a.Functions, function)
		if puts := slices.Compact(slices.Sorted(slices.Values(f.Functions[name].Puts))); len(puts) > 0 {
			a.Puts[function] = puts
		}
	}
	for _, name := range sorted(f.Buckets) {
		a.Buckets = append(a.Buckets, trigger.Bucket(name))
		if f.Buckets[name].Input {
			a.Inputs = append(a.Inputs, trigger.Bucket(name))
		}
	}
	for _, name := range sorted(f.Triggers) {
		a.Triggers = append(a.Triggers, f.Triggers[name].trigger(name, p))
	}
	return a
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// check finds what only the declaration as a whole shows.
func (a *Application) check(p *problems) {
	for _, list := range []struct {
		place string
		n     int
	}{{"functions", len(a.Functions)}, {"buckets", len(a.Buckets)}, {"triggers", len(a.Triggers)}} {
		if list.n > maxNames {
			p.add(list.place, "%d of them, at most %d", list.n, maxNames)
		}
	}
	if len(a.Triggers) == 0 {
		p.add("triggers", "there are none: nothing would ever run")
	}
	a.checkPuts(p)
	for _, t := range a.Triggers {
		if r := t.Rerun; r != nil && slices.Contains(a.Functions, r.Source) && !slices.Contains(a.Puts[r.Source], t.Bucket) {
			p.add(path(toml.Key{"triggers", string(t.Name), "rerun", "source"}), "function %s does not put into bucket %.80q, so it could never deliver", r.Source, t.Bucket)
		}
	}
}

func (a *Application) checkPuts(p *problems) {
	total := 0
	for _, f := range a.Functions {
		total += len(a.Puts[f])
		unknown := slices.DeleteFunc(slices.Clone(a.Puts[f]), func(b trigger.Bucket) bool { return slices.Contains(a.Buckets, b) })
		if len(unknown) > 0 {
			p.add(path(toml.Key{"functions", string(f), "puts"}), "there is no bucket %.200q", unknown)
		}
	}
	if total > maxPuts {
		p.add("functions", "they put into %d buckets altogether, at most %d", total, maxPuts)
	}
}

// version returns the digest of what the declaration means.
func (a *Application) version() (string, error) {
	kinds := make([]string, len(a.Triggers))
	for i := range a.Triggers {
		kinds[i] = a.Triggers[i].Rule.Kind()
	}
	unversioned := *a
	unversioned.Version = ""
	text, err := json.Marshal(struct {
		Application *Application
		Kinds       []string
	}{&unversioned, kinds})
	if err != nil {
		return "", fmt.Errorf("application %s: %w", a.Name, err)
	}
	return digest.FromBytes(text).String(), nil
}
