package stream

import (
	"errors"
	"fmt"

	"github.com/xylem-project/xylem/blockfmt"
)

// Bounds of the protocol; whoever exceeds one is cut off.
const (
	MaxUnit   = 1 << 20 // bytes of a block in one message
	MaxWants  = 128     // blocks that a child has asked for and not got, nor canceled, at one time
	maxImage  = 256     // bytes of an image's digest
	maxBitmap = 8 << 10 // bytes of a have message's bitmap
	// maxUnasked is how many pushed blocks may be on their way in pieces: one, besides those that were just given up.
	maxUnasked = 8
)

// ErrStale says that an attachment is of an older epoch than one that the other side knows.
var ErrStale = errors.New("stale epoch")

// ErrProtocol says that a peer violated the protocol.
var ErrProtocol = errors.New("protocol violation")

// Kind of a Message. The values are those on the wire.
type Kind uint8

const (
	KindAttach Kind = 1  // child, first: Image, Epoch, Count, Stripes
	KindAccept Kind = 2  // parent, in answer, after what it has: Epoch
	KindRefuse Kind = 3  // parent, in answer: Reason
	KindWant   Kind = 4  // child: Block, Lane, Received
	KindCancel Kind = 5  // child: Block
	KindData   Kind = 6  // parent: Block, Offset, Length, Total, AckNow, Data
	KindFail   Kind = 7  // parent: Block, Reason. What came of the block is void.
	KindHave   Kind = 8  // both: Block, Data. What the sender has; for a single block, what it needs no more of.
	KindAck    Kind = 9  // child: Received
	KindDetach Kind = 10 // both: no more wants, resp. make no more: another edge takes this one's place
	KindBusy   Kind = 11 // parent: what is wanted is being fetched. The child acknowledges.
	KindHurry  Kind = 12 // child: Block. The want, if it is not answered yet, is in the demand lane now.
)

// Lane is the urgency of a block on the wire.
type Lane uint8

const (
	LaneDemand     Lane = 0 // somebody waits for it
	LaneBackground Lane = 1 // asked for ahead of need
	LanePush       Lane = 2 // not asked for
	lanes               = 3
)

func (l Lane) String() string { return [...]string{"demand", "background", "push"}[l] }

// Reason says on the wire why something is refused or failed.
type Reason uint8

const (
	ReasonNotFound    Reason = 1
	ReasonTransient   Reason = 2
	ReasonDenied      Reason = 3
	ReasonUnsupported Reason = 4
	ReasonCorrupt     Reason = 5
	ReasonStale       Reason = 6
	ReasonCanceled    Reason = 7 // a cancel took effect
	ReasonDropped     Reason = 8 // the push of the block was given up
)

var reasonErrors = map[Reason]error{
	ReasonNotFound: blockfmt.ErrNotFound, ReasonTransient: blockfmt.ErrTransient, ReasonDenied: blockfmt.ErrDenied,
	ReasonUnsupported: blockfmt.ErrUnsupported, ReasonStale: ErrStale, ReasonCanceled: blockfmt.ErrTransient,
	ReasonDropped: blockfmt.ErrTransient,
	// The peer got corrupt bytes from elsewhere and says so: that does not make it a source of wrong bytes.
	ReasonCorrupt: blockfmt.ErrTransient,
}

// reasonOf returns the reason that stands for an error; what has no kind is the peer's own trouble, and passes.
func reasonOf(err error) Reason {
	for _, r := range []Reason{ReasonStale, ReasonTransient, ReasonNotFound, ReasonDenied, ReasonUnsupported} {
		if errors.Is(err, reasonErrors[r]) {
			return r
		}
	}
	if errors.Is(err, blockfmt.ErrCorrupt) {
		return ReasonCorrupt
	}
	return ReasonTransient
}

func (r Reason) err() error {
	if err := reasonErrors[r]; err != nil {
		return err
	}
	return fmt.Errorf("reason %d: %w", r, blockfmt.ErrTransient)
}

// A Message is what travels on an edge. Which fields count is up to the Kind.
type Message struct {
	Kind     Kind
	Reason   Reason
	Lane     Lane
	AckNow   bool    // acknowledge this at once
	Count    uint8   // stripes of the image
	Stripes  Stripes // that the child wants pushed
	Block    int     // number in the image; of a have message, of its bitmap's first bit
	Offset   int     // bytes from the start of the block
	Length   int     // bytes of this part of it, len(Data) unless that is dropped
	Total    int     // bytes of the block
	Epoch    uint64
	Received uint64 // bytes of data messages that the child has received on this edge
	Image    string
	// Data is a part of a block, or a bitmap. Nobody may change it.
	Data []byte
}

// Size returns about how many bytes the message takes on the wire, for models of networks.
func (m Message) Size() int { return headerSize + len(m.Image) + len(m.Data) }
