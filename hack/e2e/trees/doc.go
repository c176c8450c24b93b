// Package trees tests function trees from outside, in a lab: real agents that feed each other over shaped links, a real scheduler and a
// real registry, of which something fails while an image spreads. Whatever fails, files read right or not at all, and the registry
// is not read again by everybody. The tests need root and `make build`.
package trees
