// Package stream carries the blocks of images along the edges of function trees.
//
// It stands on the way of the data between one machine's block stack and the next one's:
//
//		parent's stack --Share--> edge ==Conn==> Peer --Ladder--> child's stack --Share--> edge ==Conn==> ...
//
//	  - A Node is one agent's end of all edges: the verifier, the bandwidth caps, the peers that were cut off.
//	  - A Share is an image on a node. It serves the node's children from a blockfmt.Source, which is the same block stack that
//	    the node itself reads through, and it keeps what parents push.
//	  - A Conn carries the messages of one edge in order. Host makes Conns of libp2p streams (TCP, TLS, yamux), Pipe makes them in
//	    memory, and a simulation makes them of a modelled network; all the rest runs on any of them, and on virtual time.
//	  - A Peer is the child's end of an edge: a blockfmt.Source whose reads are pipelined. It verifies what comes in, asked
//	    for or pushed, before anybody else sees it, and cuts off who sends wrong bytes.
//	  - A Ladder is the blockfmt.Source of one stripe: parent, backups, registry, in that order, with hedged requests when
//	    a candidate makes no progress. Striped sends each block to the ladder of its stripe.
//	  - A Service is whatever else a peer may ask for: a Host serves and dials it on streams of its own, for the same members.
//
// Two lanes run along an edge. A demand read overtakes the push, waits for at most one write unit of it, and is carried
// upstream from hop to hop, because the parent answers it by a demand read of its own. Pushed blocks flow unasked in the order
// of a Feed, as far as the window allows: the bytes that are on their way to a child are bounded by what the edge carries in
// a few tens of milliseconds, so that demand finds short queues and a slow child costs its parent nothing.
package stream
