// Package fetch holds the policies on the way of the data: each is a decorator that makes a blockfmt.Source of another
// one, in its own file. A node's stack, from the reader down, is
//
//	Deadline(Coalesced(Cached(disk, Fallback(Retry(Verified(Limited(parent))), Retry(Verified(Ranged(registry)))))))
//
// Two lanes run through it, blockfmt's: where things queue, demand goes first, and a demand read that joins a block which
// is being prefetched takes it along into its lane.
package fetch
