package app

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xylem-project/xylem/scheduler/trigger"
)

// Text shows what leads to what, bucket by bucket, and ends with the warnings. It is the same for the same version.
func (a *Application) Text() string {
	var out strings.Builder
	fmt.Fprintf(&out, "application %s\n", a.Name)
	for _, b := range a.Buckets {
		fmt.Fprintf(&out, "bucket %s <- %s\n", b, orNobody(a.sources(b)))
		for _, t := range a.Triggers {
			if t.Bucket == b {
				fmt.Fprintf(&out, "  %s: %s -> %s\n", t.Name, Describe(t), t.Function)
			}
		}
	}
	for _, w := range a.Warnings() {
		fmt.Fprintf(&out, "warning: %s\n", w)
	}
	return out.String()
}

// sources names who puts objects into a bucket.
func (a *Application) sources(b trigger.Bucket) (names []string) {
	if slices.Contains(a.Inputs, b) {
		names = append(names, "(input)")
	}
	for _, f := range a.Functions {
		if slices.Contains(a.Puts[f], b) {
			names = append(names, string(f))
		}
	}
	return names
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "(nobody)"
	}
	return strings.Join(names, ", ")
}

// DOT is the graph in the language of Graphviz: functions are boxes, buckets cylinders, triggers the arrows from buckets.
func (a *Application) DOT() string {
	var out strings.Builder
	fmt.Fprintf(&out, "digraph %q {\n  rankdir=LR\n", a.Name)
	for _, f := range a.Functions {
		fmt.Fprintf(&out, "  %q [label=%q shape=box]\n", "function "+f, f)
	}
	for _, b := range a.Buckets {
		fmt.Fprintf(&out, "  %q [label=%q shape=cylinder]\n", "bucket "+b, b)
	}
	for _, b := range a.Inputs {
		fmt.Fprintf(&out, "  %q [shape=point]\n  %q -> %q\n", "input "+b, "input "+b, "bucket "+b)
	}
	for _, f := range a.Functions {
		for _, b := range a.Puts[f] {
			fmt.Fprintf(&out, "  %q -> %q\n", "function "+f, "bucket "+string(b))
		}
	}
	for _, t := range a.Triggers {
		fmt.Fprintf(&out, "  %q -> %q [label=%q]\n", "bucket "+t.Bucket, "function "+t.Function, string(t.Name)+": "+Describe(t))
	}
	out.WriteString("}\n")
	return out.String()
}

// Describe says in a few words when a trigger fires.
func Describe(t trigger.Trigger) string {
	words := t.Rule.Kind()
	switch r := t.Rule.(type) {
	case trigger.ByName:
		words += " " + short(r.Key)
	case trigger.ByBatchSize:
		words += fmt.Sprintf(" %d", r.N)
		if r.Timeout > 0 {
			words += fmt.Sprintf(" or %v", r.Timeout)
		}
	case trigger.BySet:
		words += " " + shortList(r.Keys)
	case trigger.Redundant:
		words += fmt.Sprintf(" %d of %d, %s the rest", r.K, r.N, r.Rest)
	case trigger.ByTime:
		words += fmt.Sprintf(" %v", r.Window)
		if r.Slide != r.Window {
			words += fmt.Sprintf(" every %v", r.Slide)
		}
	case trigger.DynamicGroup:
		words += " " + shortList(r.Controls)
	}
	if t.Scope == trigger.ScopeApplication {
		words += ", across sessions"
	}
	if t.Rerun != nil {
		words += fmt.Sprintf(", reruns %s after %v, %d attempts", t.Rerun.Source, t.Rerun.Timeout, t.Rerun.Attempts)
	}
	return words
}

// short is a key in one line, in quotes if it needs them.
func short[K ~string](k K) string {
	if quoted := fmt.Sprintf("%.40q", string(k)); quoted != `"`+string(k)+`"` {
		return quoted
	}
	return string(k)
}

func shortList(keys []trigger.Key) string {
	const most = 5
	var names []string
	for _, k := range keys[:min(len(keys), most)] {
		names = append(names, short(k))
	}
	if len(keys) > most {
		names = append(names, fmt.Sprintf("%d more", len(keys)-most))
	}
	return "[" + strings.Join(names, " ") + "]"
}
