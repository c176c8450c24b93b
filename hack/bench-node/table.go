package main

import "github.com/xylem-project/xylem/hack/figures"

// rows are the figures in the order of the table.
var rows = []figures.Row{
	figures.AtMost("cold_vs_overlayfs", "cold pull and start until the program's output, of overlayfs's time", "<= 0.12", 0.12),
	figures.Shown("cold_seconds", "the same in seconds"),
	figures.Shown("overlayfs_cold_seconds", "overlayfs's time"),
	figures.AtMost("cold_vs_overlayfs_profiled", "the same for an image converted with `--profile`, of overlayfs's time", "<= 0.12", 0.12),
	figures.Shown("cold_seconds_profiled", "the same in seconds"),
	figures.Shown("cold_vs_warm_native", "cold pull and start, of the program's time without container and warm"),
	figures.Shown("native_warm_seconds", "that program's time"),
	figures.AtMost("warm_vs_overlayfs", "second start, of overlayfs's time", "<= 1.05", 1.05),
	figures.Shown("warm_seconds", "the same in seconds"),
	figures.Shown("overlayfs_warm_seconds", "overlayfs's time"),
	figures.Shown("fetched_fraction", "bytes fetched for the cold start, of the block image"),
	figures.AtMost("fetched_fraction_profiled", "the same for an image converted with `--profile`", "<= 0.08", 0.08),
	figures.AtLeast("read_warm_vs_erofs", "speed of reading the whole tree, of native EROFS: page cache warm", ">= 0.95", 0.95),
	figures.AtLeast("read_cold_vs_erofs", "the same, page cache cold, blocks local", ">= 0.70", 0.70),
	figures.AtLeast("read_warm_vs_erofs_remounted", "the same on a later mount of the image, warm", ">= 0.95", 0.95),
	figures.AtLeast("read_cold_vs_erofs_remounted", "the same on a later mount of the image, cold", ">= 0.70", 0.70),
	figures.Shown("read_first_seconds", "reading the whole tree for the first time, through the registry"),
	figures.Shown("erofs_read_cold_seconds", "native EROFS's time, cold"),
	figures.Shown("erofs_read_warm_seconds", "native EROFS's time, warm"),
	figures.AtMost("convert_seconds", "conversion, registry to registry", "<= 15 s", 15),
	figures.AtMost("convert_rss_bytes", "its memory", "<= 512 MiB", 512<<20),
	figures.AtMost("agent_rss_idle_bytes", "agent's memory with 20 images mounted", "<= 80 MiB", 80<<20),
	figures.AtMost("agent_rss_read_bytes", "agent's memory after reading a whole image", "<= 150 MiB", 150<<20),
}
