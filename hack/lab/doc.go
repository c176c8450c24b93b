// Package lab runs many hosts on one machine, for the demo, the tests and the benchmarks of everything that happens between
// machines: each host is a network namespace with an address and a shaped link, all links meet in one switch, and on the
// hosts run the real programs, an agent and a containerd each. One host has the registry, one the scheduler. Below it is
// package nodelab, which runs one host's programs.
//
//	l, err := lab.Up(ctx, lab.Config{Hosts: 8, Link: lab.Link{Up: 100 * lab.Mbit, Down: 100 * lab.Mbit}, Agents: true})
//	defer l.Down()
//	ref, err := l.Services.Push(ctx, "app:1", image)       // from inside the registry's host: its link does not count it
//	_, err = l.Services.Convert(ctx, ref, "--push")
//	for _, h := range l.Hosts() {
//		out, err := h.Node.Xylem(ctx, "mount", ref, l.Services.Path(h.Name))
//	}
//	traffic, err := l.Registry().Traffic(ctx)              // traffic.Sent is what left the registry
//
// Nothing of a lab is outside its namespaces, its directory and a directory in /dev/shm: the machine's own network has no part
// in it, and a lab reaches nothing else. Down removes everything; what a killed process left, the next Up or Sweep removes.
//
// What differs from real machines: all share one kernel, its page cache and its processors; a link has a rate and a queue,
// but no propagation delay; and a packet may be larger than a frame, as on a card that cuts them by itself, so that a link
// counts up to 4 % less than a wire would carry, though it takes as long.
package lab
