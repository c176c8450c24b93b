package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/nodelab"
)

// row says how a figure is called for people and what it must reach.
type row struct {
	name, what string
	target     string // "" if none
	met        func(x float64) bool
}

func atMost(limit float64) func(float64) bool  { return func(x float64) bool { return x <= limit } }
func atLeast(limit float64) func(float64) bool { return func(x float64) bool { return x >= limit } }

var rows = []row{
	{"cold_vs_overlayfs", "cold pull and start until the program's output, of overlayfs's time", "<= 0.12", atMost(0.12)},
	{"cold_seconds", "the same in seconds", "", nil},
	{"overlayfs_cold_seconds", "overlayfs's time", "", nil},
	{"cold_vs_overlayfs_profiled", "the same for an image converted with `--profile`, of overlayfs's time", "<= 0.12", atMost(0.12)},
	{"cold_seconds_profiled", "the same in seconds", "", nil},
	{"cold_vs_warm_native", "cold pull and start, of the program's time without container and warm", "", nil},
	{"native_warm_seconds", "that program's time", "", nil},
	{"warm_vs_overlayfs", "second start, of overlayfs's time", "<= 1.05", atMost(1.05)},
	{"warm_seconds", "the same in seconds", "", nil},
	{"overlayfs_warm_seconds", "overlayfs's time", "", nil},
	{"fetched_fraction", "bytes fetched for the cold start, of the block image", "", nil},
	{"fetched_fraction_profiled", "the same for an image converted with `--profile`", "<= 0.08", atMost(0.08)},
	{"read_warm_vs_erofs", "speed of reading the whole tree, of native EROFS: page cache warm", ">= 0.95", atLeast(0.95)},
	{"read_cold_vs_erofs", "the same, page cache cold, blocks local", ">= 0.70", atLeast(0.70)},
	{"read_warm_vs_erofs_remounted", "the same on a later mount of the image, warm", ">= 0.95", atLeast(0.95)},
	{"read_cold_vs_erofs_remounted", "the same on a later mount of the image, cold", ">= 0.70", atLeast(0.70)},
	{"read_first_seconds", "reading the whole tree for the first time, through the registry", "", nil},
	{"erofs_read_cold_seconds", "native EROFS's time, cold", "", nil},
	{"erofs_read_warm_seconds", "native EROFS's time, warm", "", nil},
	{"convert_seconds", "conversion, registry to registry", "<= 15 s", atMost(15)},
	{"convert_rss_bytes", "its memory", "<= 512 MiB", atMost(512 << 20)},
	{"agent_rss_idle_bytes", "agent's memory with 20 images mounted", "<= 80 MiB", atMost(80 << 20)},
	{"agent_rss_read_bytes", "agent's memory after reading a whole image", "<= 150 MiB", atMost(150 << 20)},
}

// figures returns what was measured in the order of the table.
func (b *bench) figures() []nodelab.Figure {
	var list []nodelab.Figure
	for _, r := range rows {
		if f, ok := b.result[r.name]; ok {
			list = append(list, f)
		}
	}
	return list
}

// table formats figures in Markdown.
func table(figures []nodelab.Figure) string {
	byName := map[string]nodelab.Figure{}
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
	case "s":
		return fmt.Sprintf("%.2f s", x)
	default:
		return fmt.Sprintf("%.3f", x)
	}
}

const (
	beginMark = "<!-- bench-node: begin, written by `make bench-node` -->\n"
	endMark   = "<!-- bench-node: end -->\n"
)

// rewriteDoc puts the table between the document's markers; what is around them stays.
func rewriteDoc(path, table string, now time.Time) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return errors.New(path + " has no markers of bench-node")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	body := fmt.Sprintf("\n%s, Linux %s, by `make bench-node`:\n\n%s\n", now.UTC().Format(time.DateOnly), unix.ByteSliceToString(u.Release[:]), table)
	return os.WriteFile(path, []byte(string(before)+beginMark+body+endMark+string(after)), 0o644)
}
