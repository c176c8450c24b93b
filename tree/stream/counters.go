package stream

import "sync/atomic"

// Counters count what a Node did. Read them at any time.
type Counters struct {
	BytesUp    [lanes]atomic.Int64 // of blocks, sent to children, by Lane
	BytesDown  [lanes]atomic.Int64 // of blocks, received from parents, by Lane
	BlocksUp   [lanes]atomic.Int64
	BlocksDown [lanes]atomic.Int64
	Duplicates atomic.Int64 // pushed blocks that were here already
	Canceled   atomic.Int64 // wants that a child gave up
	Hot        atomic.Int64 // blocks served from memory
	CutOffs    atomic.Int64 // peers that were cut off
	Refused    atomic.Int64 // attachments
	Hedges     atomic.Int64 // requests to a further candidate while one is under way
	HedgesWon  atomic.Int64
	Stalls     atomic.Int64 // candidates that were put back
}
