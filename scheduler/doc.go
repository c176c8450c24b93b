// Package scheduler is the control plane: it knows the agents of a cluster and owns the function trees by which they feed each
// other.
//
// It stands beside the way of the data: blocks never pass through it, and agents go on feeding each other while it is away.
//
//	agent --api.Client--> server --> keeper --tree.Forest--> changed members --store.Store--> positions --session--> agents
//
// # Who owns a tree
//
// Every scheduler holds a key with a lease in the store, so all know which of them live. An image belongs to the one of these that
// rendezvous hashing gives; any other answers 421 and says who that is. Views of who lives may differ for a moment, so ownership
// is not decided by them: before a scheduler touches a tree it claims it by a transaction that raises the image's term, and every
// later write of the tree is a transaction that demands that the claim still stands. Whoever was owner before cannot write any more,
// and learns from its first attempt that it has to forget the tree.
//
// # What is sent has been written
//
// A change of the tree is written before anybody hears of it: a new owner reads members exactly as the last position that any
// of them may have received says, or later. Were positions sent first, the new owner could restore an edge with an epoch below
// the one that a member already follows; a higher term would only help members that the new owner happens to move, the others would
// refuse what they are told, or feed nobody. The price is one write of the store, which is shared: events that arrive during a write of
// their tree go into the next one together (see batch).
//
// # Conversions
//
// Who converts an image that has no block image, and who holds the result, belongs to no owner: any scheduler answers, by a transaction
// that demands that the record is as it was read (see conversion).
//
// # When the store does not answer
//
// Trees stand still: nobody joins, leaves or fails, calls end with status 503, and agents keep the places and backups that they
// have. A transaction whose fate is not known is written again, which does no harm: it says how members are, not how they change,
// and demands the claim.
package scheduler
