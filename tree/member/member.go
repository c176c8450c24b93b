package member

import (
	"context"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// A Position says where a member is in one stripe, as the tree's owner said.
type Position struct {
	Stripe int
	Epoch  uint64 // the highest counts; a Position of the same epoch brings other backups or children
	// Parent feeds the member. The zero Address says that it is the root, which holds the lease to read the registry.
	Parent  stream.Address
	Backups []stream.Address // whom to ask, in this order, when the parent is in trouble
	// Children are whom the member feeds, with the epochs of their attachments.
	Children []Child
}

// A Child is whom a member feeds in a stripe.
type Child struct {
	stream.Address
	Epoch uint64
}

// An Attacher makes a share the child of a peer: stream.Host.Attach, or what a simulation has in its place.
type Attacher func(ctx context.Context, s *stream.Share, to stream.Address, at stream.Attachment) (*stream.Peer, error)

// Config of a Member. Node, Image, Attach, Store and Origin are needed.
type Config struct {
	Node   *stream.Node
	Image  *stream.Image
	Attach Attacher
	// Store keeps the blocks; Recycle says that it does not hold on to their bytes (see stream.ShareConfig).
	Store   blockfmt.Store
	Recycle bool
	// Origin reads blocks from the registry. Its bytes need not be verified.
	Origin blockfmt.Source
	// Stack makes of what the Member gives what the node reads through, and children are served from: the node's cache and
	// whatever belongs above it. Default: the Member's own Source.
	Stack func(blockfmt.Source) blockfmt.Source
	// Order are the blocks to push first, such as a startup record, by number.
	Order []int
	// Failed is told of a parent or backup that cannot be reached or whose edge broke. It must not block. Default: nobody.
	Failed func(peer stream.PeerID, err error)
}
