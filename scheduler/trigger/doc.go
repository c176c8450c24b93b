// Package trigger decides which functions run because of which objects: it is the rules of data buckets, after Pheromone (NSDI'23).
//
// It stands in the middle of the way of the data:
//
//	function --puts object--> data bucket --Put--> Evaluator --Firing--> owner --places--> function
//
// # Model
//
// An Application has functions, data buckets and triggers. A Trigger belongs to a bucket and names the function that runs when its
// Rule says so. Each run of the application is a Session, and every object and invocation belongs to one. An Object is named by its
// session, bucket and key, and never changes: the same one put again is a duplicate and does nothing, another one of the same name is a
// conflict and does nothing either. Here objects are names and sizes; the owner has the bytes.
//
// # Events and output
//
// An Evaluator is a pure state machine, without clock, I/O and goroutines. Its owner, the coordinator of the sessions, tells it what happens: a session
// begins or ends, an object is there, a function has started, finished or failed, a set is announced, a group is complete, time has
// passed. What follows is an Output: invocations to make, invocations to cancel, dead letters, sessions that are over. Deadline says when it
// wants to be called if nothing else happens.
//
// Each event brings the time at which it happened, and what was due before happens before it, at its own instant. So the same events with
// the same times have the same output, whenever ticks come between them. Only steps forward of the clock count.
//
// # Sessions
//
// Triggers keep sessions apart: no firing has objects of two, unless a ByBatchSize or a ByTime is declared across sessions. Then each
// firing begins a session of its own, called like the firing, which ends by itself when its work is done.
//
// After End a session goes on as long as something runs. Whenever nothing does, batches and windows that are not full fire with
// what they hold; when nothing comes of that, the session is over. What then still waits in sets, joins, groups and rounds is
// dropped, and Ended says so: the outcome is "incomplete". Cancel, and a limit that is exceeded, end a session at once and drop all. Across
// sessions, batches and windows keep the objects of sessions that ended by themselves, and drop those of the others. Pending says at any
// time what a session waits for.
//
// For this the owner must report the end of every invocation, after all objects that it put.
//
// # Reruns
//
// A trigger may watch a function (Rerun): each of its invocations has to put an object that the trigger takes, in time. Otherwise, or when it
// fails, the same invocation comes again with the next attempt, after a back-off, and at last as a dead letter. Any attempt may deliver.
// Objects that come twice because of that are duplicates. A trigger that needs nothing more stops watching.
//
// # Crashes
//
// A coordinator's successor goes on from a Snapshot, or tells a new evaluator all events again, in their order and with their times. It gets the
// same firings with the same IDs, so that it can leave out those that were made already. IDs of Immediate, ByName, BySet,
// DynamicJoin and DynamicGroup do not depend on the order of objects; those of the others are numbers.
//
// # Costs
//
// An event takes O(log n) of the timers that are set, for each trigger of the bucket, and what it takes to copy the objects that fire. A control
// for all groups takes the time of all groups, a cancelled session that of all that it holds.
//
// Sessions do not know each other, so that many evaluators can share the sessions of an application; but triggers across
// sessions need one evaluator that has them all.
package trigger
