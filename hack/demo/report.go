package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
)

// report is everything that the demo measured.
type report struct {
	hosts        int
	rate         lab.Rate
	image        int64 // bytes of the compressed layers
	today, xylem measured
}

func (m measured) last() time.Duration { return slices.Max(m.waits) }

func (r *report) figures() []figures.Figure {
	bytes := func(name string, n int64) figures.Figure { return figures.Summary(name, "B", []float64{float64(n)}) }
	one := func(m measured) []float64 { return []float64{m.last().Seconds()} }
	return []figures.Figure{
		figures.Summary("overlayfs_seconds", "s", figures.Seconds(r.today.waits)),
		figures.Summary("xylem_seconds", "s", figures.Seconds(r.xylem.waits)),
		figures.Ratio("last_host_vs_overlayfs", one(r.xylem), one(r.today)),
		bytes("overlayfs_egress_bytes", r.today.egress),
		bytes("xylem_egress_bytes", r.xylem.egress),
		bytes("image_bytes", r.image),
	}
}

func (r *report) print(w io.Writer) {
	line := "  %-44s %10s %10s %10s %14s\n"
	fmt.Fprintf(w, "\nFrom `run` until the program's first line, %d hosts in the same moment, every link %s:\n\n", r.hosts, r.rate)
	fmt.Fprintf(w, line, "", "first", "median", "last", "registry sent")
	for _, way := range []struct {
		name string
		m    measured
	}{{"today: pull, unpack, overlayfs", r.today}, {"xylem", r.xylem}} {
		s := figures.Summary("", "s", figures.Seconds(way.m.waits))
		seconds := func(x float64) string { return fmt.Sprintf("%.2f s", x) }
		fmt.Fprintf(w, line, way.name, seconds(s.Min), seconds(s.Value), seconds(s.Max), fmt.Sprintf("%.0f MB", float64(way.m.egress)/1e6))
	}
	fmt.Fprintf(w, "\n  The image has %.0f MB. Today the registry sends it %.1f times; with xylem %.2f times, because hosts feed each other:\n\n",
		float64(r.image)/1e6, float64(r.today.egress)/float64(r.image), float64(r.xylem.egress)/float64(r.image))
	fmt.Fprintf(w, "  %s\n\n", strings.ReplaceAll(strings.TrimSpace(r.xylem.tree), "\n", "\n  "))
}
