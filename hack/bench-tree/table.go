package main

import "github.com/xylem-project/xylem/hack/figures"

// rows are the figures in the order of the table. LB is the lower bound max(F/us, F/d, N*F/(us + N*u)) for F bytes, N machines with
// uplink u and downlink d, and a registry with uplink us.
var rows = []figures.Row{
	figures.AtMost("lab8_t_over_lb", "8 hosts at 100 Mbit/s have all blocks, two stripes, of LB", "<= 1.25", 1.25),
	figures.AtMost("lab16_t_over_lb", "the same with 16 hosts", "<= 1.25", 1.25),
	figures.Shown("lab8_one_stripe_t_over_lb", "8 hosts, one stripe"),
	figures.Shown("lab16_one_stripe_t_over_lb", "16 hosts, one stripe"),
	figures.Shown("lab8_registry_t_over_lb", "8 hosts, each from the registry"),
	figures.Shown("lab16_registry_t_over_lb", "16 hosts, each from the registry"),
	figures.AtMost("sim1000_t_over_lb", "1,000 machines at 1 Gbit/s have all blocks, simulated, two stripes, of LB", "<= 1.10", 1.10),
	figures.Shown("sim1000_one_stripe_t_over_lb", "the same with one stripe"),
	figures.AtMost("sim1000_first_block_seconds", "first block at all of 1,000 machines, 0.25 ms a hop", "<= 0.025 s", 0.025),
	figures.AtMost("sim_2500_on_1000_seconds", "2,500 containers on 1,000 machines, until the last one is ready", "<= 5.0 s", 5),
	figures.AtMost("lab_egress_over_f", "bytes that left the registry, of the image, 8 hosts", "<= 1.05", 1.05),
	figures.AtMost("lab_root_crash_egress_over_f", "the same when a root is killed half-way", "<= 1.05", 1.05),
	figures.AtMost("sim_egress_over_f", "the same, simulated, 1,000 machines", "<= 1.05", 1.05),
	figures.AtMost("sim_root_crash_egress_over_f", "the same, a root killed half-way", "<= 1.05", 1.05),
	figures.AtMost("sim_kill_p99_added_seconds", "killing an inner machine adds to the 99th percentile of reads, simulated", "<= 0.10 s", 0.1),
	figures.AtMost("lab_kill_p99_added_seconds", "the same in the lab", "<= 0.50 s", 0.5),
	figures.AtLeast("hop_vs_tls", "one hop over loopback, pushed and verified, of raw TLS 1.3", ">= 0.70", 0.70),
	figures.AtLeast("hop_asked_vs_tls", "the same, asked for block by block", ">= 0.70", 0.70),
	figures.AtLeast("tree_ops_per_second", "random operations on a tree of 10,000 members", ">= 200,000", 200_000),
	figures.AtMost("tree_violations", "violations of its invariants in a million of them", "0", 0),
	figures.AtMost("many_images_ratio", "20 images on one agent at once, of the time of one image of the same bytes", "<= 1.20", 1.20),
}
