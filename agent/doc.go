// Package agent is the node daemon: it finds the block image of a container image, builds the stack of Sources that its
// blocks come through, mounts it lazily and serves the mounts to containerd's snapshotter.
//
//	registry --fetch.Ranged--> verified --cache.Cache--> coalesced --cache.File--> fuse.Server --erofs.Mount--> snapshotter
//
// Images that have no block image are converted in the background, once in a cluster (converter); the agent serves what it made to others
// (holdings), and reads what they made in the registry's place (held).
//
// Run owns everything: what others depend on is started first and stopped last. State that must survive lies under
// Config.Root (cache/, images/, converted/, snapshots/, converter.key), sockets and mounts under Config.State.
package agent
