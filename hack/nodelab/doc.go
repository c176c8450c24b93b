// Package nodelab runs one machine's worth of the real thing for the demo, the benchmarks and the end-to-end tests: Debian's
// registry, containerd and our agent, all in one temporary directory and on loopback, and it measures starts of containers
// there. A Lab has the registry; each of its Nodes is a containerd with an empty store, as on a machine that never saw the
// image.
package nodelab
