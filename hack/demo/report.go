package main

import (
	"fmt"
	"io"
	"time"

	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/nodelab"
)

// report is everything that the demo measured.
type report struct {
	image            *demoimage.Image
	conversion       nodelab.Conversion
	native           []time.Duration
	overlayfs, xylem nodelab.Measured
	profiled         nodelab.Measured // xylem, laid out by a startup profile
}

func (r *report) figures() []figures.Figure {
	seconds := func(name string, t []time.Duration) figures.Figure {
		return figures.Summary(name, "s", figures.Seconds(t))
	}
	return []figures.Figure{
		seconds("cold_seconds_overlayfs", r.overlayfs.Cold),
		seconds("cold_seconds", r.xylem.Cold),
		figures.Ratio("cold_vs_overlayfs", figures.Seconds(r.xylem.Cold), figures.Seconds(r.overlayfs.Cold)),
		seconds("cold_seconds_profiled", r.profiled.Cold),
		figures.Ratio("cold_vs_overlayfs_profiled", figures.Seconds(r.profiled.Cold), figures.Seconds(r.overlayfs.Cold)),
		seconds("warm_seconds_overlayfs", r.overlayfs.Warm),
		seconds("warm_seconds", r.xylem.Warm),
		figures.Ratio("warm_vs_overlayfs", figures.Seconds(r.xylem.Warm), figures.Seconds(r.overlayfs.Warm)),
		seconds("warm_seconds_profiled", r.profiled.Warm),
		seconds("native_seconds", r.native),
		figures.Summary("fetched_bytes", "B", r.xylem.Fetched),
		figures.Summary("fetched_bytes_profiled", "B", r.profiled.Fetched),
		figures.Summary("image_bytes", "B", []float64{float64(r.image.Stored)}),
		seconds("convert_seconds", []time.Duration{r.conversion.Time}),
	}
}

func (r *report) print(w io.Writer) {
	f := map[string]figures.Figure{}
	for _, figure := range r.figures() {
		f[figure.Name] = figure
	}
	line := "  %-46s %11s %11s %17s\n"
	cell := func(name, format string, divisor float64) string { return fmt.Sprintf(format, f[name].Value/divisor) }
	seconds := func(name string) string { return cell(name, "%.2f s", 1) }
	megabytes := func(name string) string { return cell(name, "%.0f MB", 1e6) }
	fmt.Fprintf(w, "\nFrom `run` until the program's first line (median of %d):\n\n", len(r.native))
	fmt.Fprintf(w, line, "", "overlayfs", "xylem", "xylem, profiled")
	fmt.Fprintf(w, line, "first start: image in the registry only", seconds("cold_seconds_overlayfs"), seconds("cold_seconds"), seconds("cold_seconds_profiled"))
	fmt.Fprintf(w, line, "second start: image on the machine", seconds("warm_seconds_overlayfs"), seconds("warm_seconds"), seconds("warm_seconds_profiled"))
	fmt.Fprintf(w, line, "fetched from the registry for the first start", megabytes("image_bytes"), megabytes("fetched_bytes"), megabytes("fetched_bytes_profiled"))
	fmt.Fprintf(w, "\n  The program without any container, warm: %.2f s. Converting the image, once for all machines: %.1f s.\n",
		f["native_seconds"].Value, f["convert_seconds"].Value)
	fmt.Fprintf(w, "  xylem's first start took %.0f %% of overlayfs's; with the order of an earlier start known, %.0f %%.\n\n",
		100*f["cold_vs_overlayfs"].Value, 100*f["cold_vs_overlayfs_profiled"].Value)
}
