// Package treesim runs a thousand agents in one process on virtual time: the real tree, member, stream and fetch stack over a
// modelled network.
//
//	registry ~~link~~> agent: Deadline(Coalesced(Cached(store, Member))) ==Network==> agent ==> ...
//	                     ^ Positions                                           ^
//	                     +------------------ owner: tree.Forest ---------------+
//
// What is modelled are links (rates, delay, queues, loss), the ways in which hosts fail, the registry's answers, the messages
// between agents and the tree's owner, and containers that read an image while they start. Everything else is the code that
// agents run. Bytes of blocks are shared and never looked at, but for a tag that tells wrong ones.
//
// Simulate must be called in a bubble of testing/synctest, whose clock moves on when all agents wait.
//
// # What a seed repeats
//
// A Report holds the Config that gave it; Simulate with that is the replay. It repeats exactly: the links, who joins when, what
// programs read and how long they compute, which faults come when and whom they hit if they name a machine, and, for a given
// sequence of segments on an edge, which of them are lost. The Network takes what is sent in one tick in an order that does not
// depend on goroutines, so without races inside of an agent a replay is the same to the nanosecond (TestRepeatsExactly). There
// are such races: which of several goroutines of an agent runs first in one instant (eight reads of a root that begin together),
// the choice of select, and the random half of pauses in agent/fetch and tree/member. What they decide, and all that follows, may
// differ: so a failure that a seed shows may need several runs of that seed to be seen again.
package treesim
