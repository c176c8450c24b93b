package figures

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Row says how a figure is called for people and what it must reach.
type Row struct {
	name, what string
	target     string // "" if none
	met        func(x float64) bool
}

// Shown is the row of a figure that must reach nothing.
func Shown(name, what string) Row { return Row{name: name, what: what} }

// AtMost is the row of a figure that must not be more than a limit, which people read as target.
func AtMost(name, what, target string, limit float64) Row {
	return Row{name, what, target, func(x float64) bool { return x <= limit }}
}

// AtLeast is the row of a figure that must not be less than a limit, which people read as target.
func AtLeast(name, what, target string, limit float64) Row {
	return Row{name, what, target, func(x float64) bool { return x >= limit }}
}

// InOrder returns the figures that rows tell of, in their order.
func InOrder(rows []Row, figures map[string]Figure) (list []Figure) {
	for _, r := range rows {
		if f, ok := figures[r.name]; ok {
			list = append(list, f)
		}
	}
	return list
}

// Table formats figures in Markdown, in the order of the rows; rows without a figure are left out.
func Table(rows []Row, figures []Figure) string {
	byName := map[string]Figure{}
	for _, f := range figures {
		byName[f.Name] = f
	}
	var out strings.Builder
	out.WriteString("| what | name | median | min | max | n | target | |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		f, ok := byName[r.name]
		if !ok {
			continue
		}
		verdict := ""
		if r.met != nil {
			verdict = map[bool]string{true: "met", false: "**missed**"}[r.met(f.Value)]
		}
		fmt.Fprintf(&out, "| %s | `%s` | %s | %s | %s | %d | %s | %s |\n",
			r.what, r.name, value(f.Unit, f.Value), value(f.Unit, f.Min), value(f.Unit, f.Max), f.N, r.target, verdict)
	}
	return out.String()
}

func value(unit string, x float64) string {
	switch unit {
	case "B":
		return fmt.Sprintf("%.0f MiB", x/(1<<20))
	case "B/s":
		return fmt.Sprintf("%.0f MiB/s", x/(1<<20))
	case "s":
		if x != 0 && math.Abs(x) < 0.1 {
			return fmt.Sprintf("%.2f ms", x*1e3)
		}
		return fmt.Sprintf("%.2f s", x)
	case "1/s", "count":
		return fmt.Sprintf("%.0f", x)
	default:
		return fmt.Sprintf("%.3f", x)
	}
}

// Begin and End are the lines of docs/benchmarks.md between which a benchmark writes its table.
func Begin(bench string) string {
	return "<!-- " + bench + ": begin, written by `make " + bench + "` -->\n"
}

func End(bench string) string { return "<!-- " + bench + ": end -->\n" }

// RewriteDoc puts a benchmark's table between the document's markers; what is around them stays.
func RewriteDoc(path, bench, table string, now time.Time) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(Begin(bench)))
	_, after, ok2 := bytes.Cut(rest, []byte(End(bench)))
	if !ok || !ok2 {
		return errors.New(path + " has no markers of " + bench)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	body := fmt.Sprintf("\n%s, Linux %s, by `make %s`:\n\n%s\n", now.UTC().Format(time.DateOnly), unix.ByteSliceToString(u.Release[:]), bench, table)
	return os.WriteFile(path, []byte(string(before)+Begin(bench)+body+End(bench)+string(after)), 0o644)
}
