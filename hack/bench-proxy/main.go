// Command bench-proxy measures the registry proxy: an image that nobody converted on eight hosts at once, and what the proxy costs on one.
//
//	go run ./hack/bench-proxy          as root, after make build; `make bench-proxy` does both
//
// It prints a table, writes hack/out/bench-proxy.json and rewrites the table in docs/benchmarks.md.
package main

import "github.com/xylem-project/xylem/hack/figures"

func main() {
	b := &bench{figures.NewRun("bench-proxy", rows)}
	b.Main(figures.Step{Name: "lab8", Do: b.lab8}, figures.Step{Name: "warm", Do: b.warm}, figures.Step{Name: "memory", Do: b.memory},
		figures.Step{Name: "manifest", Do: b.manifest})
}

// bench is one run.
type bench struct{ *figures.Run }

// rows are the figures in the order of the table.
var rows = []figures.Row{
	figures.AtMost("lab8_plain_t_over_lb", "8 hosts at 100 Mbit/s pull an image that nobody converted, until the last has it, of LB", "<= 1.30", 1.30),
	figures.AtMost("lab8_plain_egress_over_f", "bytes that left the registry meanwhile, of the image", "<= 1.05", 1.05),
	figures.Shown("lab8_plain_direct_t_over_lb", "the same without xylem, each host from the registry, of LB"),
	figures.AtLeast("warm_blob_vs_nginx", "speed of a blob of 1 GiB that the proxy keeps, over loopback, of nginx's with the same file", ">= 0.80", 0.8),
	figures.Shown("warm_blob_bytes_per_second", "that speed"),
	figures.Shown("nginx_bytes_per_second", "nginx's"),
	figures.AtMost("rss_200_downloads_bytes", "proxy's memory with 200 downloads of a blob of 1 GiB at once, at its highest", "<= 64 MiB", 64<<20),
	figures.AtMost("manifest_p50_added_seconds", "a manifest that the proxy keeps takes longer than from docker-registry, medians", "<= 1 ms", 1e-3),
	figures.Shown("manifest_p50_seconds", "how long that is"),
	figures.Shown("registry_manifest_p50_seconds", "docker-registry's time"),
}
