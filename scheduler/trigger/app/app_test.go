package app_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/scheduler/trigger"
	"github.com/xylem-project/xylem/scheduler/trigger/app"
)

var rewrite = flag.Bool("rewrite", false, "write what is said of the declarations now into testdata")

// Each declaration NAME.toml of testdata has a NAME.txt with what is said of it: graph and warnings, or all that is wrong.
func TestDeclarations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			got, golden := say(read(t, file)), strings.TrimSuffix(file, ".toml")+".txt"
			if *rewrite {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(read(t, golden)) {
				t.Errorf("%s: says now\n%s", golden, got)
			}
		})
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func say(text []byte) string {
	a, err := app.Parse(text)
	var problems trigger.Problems
	switch {
	case errors.As(err, &problems):
		var out strings.Builder
		for _, p := range problems {
			out.WriteString(p.String() + "\n")
		}
		return out.String()
	case err != nil:
		return err.Error() + "\n"
	}
	return a.Text() + "\n" + a.DOT()
}

// The version is what a declaration means: order, comments and other ways to write the same do not change it, everything else does.
func TestVersion(t *testing.T) {
	version := func(text string) string {
		a, err := app.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return a.Version
	}
	const text = `
		name = "a"
		functions.f.puts = ["in", "out"]
		buckets = { in = {}, out = {} }
		triggers.t = { type = "by-time", bucket = "in", function = "f", window = "60s" }`
	first := version(text)
	if !strings.HasPrefix(first, "sha256:") {
		t.Errorf("version %q", first)
	}
	for _, same := range []string{`
		name = "a" # a comment
		triggers = { t = { window = "1m", slide = "1m0s", scope = "session", gets = "values", function = "f", bucket = "in", type = "by-time" } }
		[buckets]
		out = { input = false }
		in = {}
		[functions]
		f = { puts = ["out", "in", "out"] }`} {
		if got := version(same); got != first {
			t.Errorf("%s\n%s instead of %s", same, got, first)
		}
	}
	for _, change := range [][2]string{{`"a"`, `"b"`}, {`"60s"`, `"61s"`}, {`"in", "out"]`, `"in"]`}, {`in = {}`, `in = { input = true }`},
		{`"by-time", bucket`, `"by-time", gets = "keys", bucket`}, {`"by-time"`, `"by-time", scope = "application"`}, {`, window = "60s"`, ``}} {
		changed := strings.Replace(text, change[0], change[1], 1)
		if change[1] == "" {
			changed = strings.Replace(changed, "by-time", "immediate", 1)
		}
		if version(changed) == first {
			t.Errorf("%s has the same version", changed)
		}
	}
	join, each := strings.NewReplacer("by-time", "dynamic-join", `, window = "60s"`, ""), strings.NewReplacer("by-time", "immediate", `, window = "60s"`, "")
	if version(join.Replace(text)) == version(each.Replace(text)) {
		t.Error("types without parameters have the same version")
	}
}

func TestTooLargeDeclarationsAreRefused(t *testing.T) {
	_, err := app.Parse(bytes.Repeat([]byte("#"), app.MaxSize+1))
	if !errors.Is(err, trigger.ErrInvalid) {
		t.Error(err)
	}
}

// Whatever is declared: it is refused in one line, or evaluators take it, and it reads the same each time.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := app.Parse(text)
		if err != nil {
			if !errors.Is(err, trigger.ErrInvalid) || strings.ContainsAny(err.Error(), "\n\r\x00\x1b") {
				t.Errorf("%q", err)
			}
			return
		}
		if _, err := trigger.New(a.Application); err != nil {
			t.Errorf("accepted, but not by evaluators: %v", err)
		}
		b, err := app.Parse(text)
		if err != nil || b.Version != a.Version || b.Text() != a.Text() || b.DOT() != a.DOT() {
			t.Errorf("reads differently: %v\n%s\n%s", err, a.Text(), b.Text())
		}
		for line := range strings.Lines(a.Text()) {
			if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\n\r\x00\x1b") {
				t.Errorf("%q", line)
			}
		}
	})
}
