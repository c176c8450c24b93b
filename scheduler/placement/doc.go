// Package placement decides which instance of a function an invocation goes to.
//
// It stands at the door of the way of the data: the gateway takes an invocation's colour from the request, asks the function's Policy,
// and sends the invocation to the instance that it picked, whose node may still hold what the last invocation of that colour left.
//
//	request --colour--> gateway --Policy.Pick--> instance --Assigned, Done--> Policy --Rebalance, on the gateway's tick--> Moves
//
// A colour is a hint of the caller: invocations with the same colour want the same data. Correctness never depends on it: any
// instance can do any invocation, policies may forget colours, and two gateways may disagree for a while.
//
// # Policies
//
// The names are those of Palette (EuroSys'23), whose policies and baselines these are, except the last:
//
//   - random and round-robin do not look at colours.
//   - consistent-hash puts instances on a ring, 128 points each; a colour belongs to the first point after its hash.
//   - hash-slots (Palette's buckets) gives each of 16,384 hash slots to an instance, the same number to each.
//   - least-assigned remembers each colour and gives a new one to the instance that has the fewest.
//   - adaptive measures how hot slots and colours are, and moves them on each Rebalance so that all instances have the same load and, if it is known how
//     many colours an instance keeps warm, the cold do not flush the hot out of their caches. It can bound the load of an instance.
//
// # What is promised
//
// All methods of all policies are safe for concurrent use, and none does I/O or reads a clock. Pick takes no lock for a colour that
// is known. A Pick that begins after Remove has returned does not give the removed instance. With the same seed and the same
// history of calls, one after the other, a policy picks the same.
//
// Add moves colours to the new instance only, Remove only those of the removed one. What moved is returned with its colours, so that their
// new owner can fetch their data before the next invocation wants it.
package placement
