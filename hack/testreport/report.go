package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

type testKey struct{ pkg, test string }

// Report collects the events of one or more runs. Not safe for concurrent use.
type Report struct {
	out                     io.Writer
	label                   string // of the run, printed with its packages
	passed, failed, skipped int
	output                  map[testKey]*strings.Builder // of what has not ended yet
	builds                  map[string]*strings.Builder  // what the compiler said, by import path
	failedIn                map[string]int               // failed tests by package
}

// NewReport returns an empty report that prints to out.
func NewReport(out io.Writer) *Report {
	return &Report{out: out, output: map[testKey]*strings.Builder{}, builds: map[string]*strings.Builder{}, failedIn: map[string]int{}}
}

// OK says whether nothing failed and nothing was skipped.
func (r *Report) OK() bool { return r.failed == 0 && r.skipped == 0 }

// Summary is the closing line.
func (r *Report) Summary() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
}

// Read takes the events of one run until its end. It returns an error only if they cannot be read.
func (r *Report) Read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case line == "" && err == io.EOF:
			return nil
		case err != nil && err != io.EOF:
			return err
		case json.Unmarshal([]byte(line), &e) != nil:
			fmt.Fprint(r.out, line) // of the go command itself
		default:
			r.add(e)
		}
	}
}

func (r *Report) add(e event) {
	switch e.Action {
	case "output":
		buffer(r.output, testKey{e.Package, e.Test}).WriteString(e.Output)
	case "build-output":
		buffer(r.builds, e.ImportPath).WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test != "" {
			r.endTest(e)
		} else {
			r.endPackage(e)
		}
	}
}

func (r *Report) endTest(e event) {
	key := testKey{e.Package, e.Test}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.failedIn[e.Package]++
		fmt.Fprintf(r.out, "%s", buffer(r.output, key))
	case "skip":
		r.skipped++
		fmt.Fprintf(r.out, "%s", buffer(r.output, key))
	}
	delete(r.output, key)
}

// endPackage prints the package's line. A package that fails without a failed test (it does not compile, panics, times
// out) counts as one failure, with everything it said; one without test files counts as nothing.
func (r *Report) endPackage(e event) {
	if e.Action == "fail" && r.failedIn[e.Package] == 0 {
		r.failed++
		fmt.Fprint(r.out, buffer(r.builds, e.FailedBuild))
		r.printUnfinished(e.Package)
		fmt.Fprint(r.out, buffer(r.output, testKey{e.Package, ""}))
	}
	if e.Action == "fail" && r.failedIn[e.Package] > 0 {
		r.printUnfinished(e.Package)
	}
	if e.Action != "skip" {
		fmt.Fprintf(r.out, "%-4s %s%s %.1fs\n", e.Action, e.Package, r.label, e.Elapsed)
	}
	delete(r.output, testKey{e.Package, ""})
	delete(r.failedIn, e.Package)
}

// printUnfinished prints the output of tests that never ended: those that ran when the process died.
func (r *Report) printUnfinished(pkg string) {
	for key, b := range r.output {
		if key.pkg == pkg && key.test != "" {
			fmt.Fprint(r.out, b)
			delete(r.output, key)
		}
	}
}

func buffer[K comparable](m map[K]*strings.Builder, key K) *strings.Builder {
	if m[key] == nil {
		m[key] = &strings.Builder{}
	}
	return m[key]
}
