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
// The seed gives the world (links, the order of reads, pauses of programs), the faults and when they come, and which segments are
// lost on each edge. The Network takes what is sent in one instant in an order that does not depend on goroutines, so a message
// meets the same queues. Which of several goroutines of an agent runs first in one instant, the choice of select, and the random
// half of pauses in agent/fetch and tree/member are not the seed's: two runs may differ by what such a race decides. The Trace has
// what a seed repeats exactly under Plan, and what happened then under Events.
package treesim
