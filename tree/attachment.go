package tree

import (
	"cmp"
	"errors"
	"fmt"
)

// Errors that callers act on; all errors of the package wrap one of them.
var (
	ErrExists  = errors.New("is a member already")
	ErrUnknown = errors.New("unknown")
	ErrInvalid = errors.New("invalid")
	ErrStale   = errors.New("stale epoch")
)

// An ID names a machine, in all trees alike.
type ID string

// Registry is the parent of a stripe's root. No member has this ID.
const Registry ID = ""

// An Epoch orders the attachments of one tree. Term grows when the tree gets another owner (Restore), so an owner that was
// cut off cannot issue an epoch that beats its successor's; Seq grows with every attachment.
type Epoch struct {
	Term uint64 `json:"term"`
	Seq  uint64 `json:"seq"`
}

// Compare orders by term, then by sequence.
func (e Epoch) Compare(other Epoch) int {
	return cmp.Or(cmp.Compare(e.Term, other.Term), cmp.Compare(e.Seq, other.Seq))
}

func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.Term, e.Seq) }

// Leaf is the Level of a member that has no place in a stripe's interior group.
const Leaf = -1

// An Attachment says who feeds a member in one stripe. All attachments of a tree are its whole state.
type Attachment struct {
	Child  ID    `json:"child"`
	Stripe int   `json:"stripe"`
	Parent ID    `json:"parent"` // Registry for the root, which holds the fetch lease of the stripe
	Level  int   `json:"level"`  // depth of the child if it may be interior in the stripe, otherwise Leaf
	Epoch  Epoch `json:"epoch"`
}

// Accept returns the attachment to keep by whoever keeps a, child or parent, when it hears of next: the newer one. It
// refuses an older one with ErrStale. The zero Attachment accepts any.
func (a Attachment) Accept(next Attachment) (Attachment, error) {
	if a == (Attachment{}) || a == next {
		return next, nil
	}
	if a.Child != next.Child || a.Stripe != next.Stripe {
		return a, fmt.Errorf("%s in stripe %d does not attach %s in stripe %d: %w", next.Child, next.Stripe, a.Child, a.Stripe, ErrInvalid)
	}
	if next.Epoch.Compare(a.Epoch) <= 0 {
		return a, fmt.Errorf("%s in stripe %d: epoch %v is not after %v: %w", a.Child, a.Stripe, next.Epoch, a.Epoch, ErrStale)
	}
	return next, nil
}

// A Change is a new attachment for its child.
type Change struct {
	Attachment
	// Old is the parent that goes on feeding the child until the new one does. Empty if there is none: the child is new, was a
	// root, or its old parent failed.
	Old ID
	// Backups are whom to ask, in this order, when the parent is in trouble; after them the registry.
	Backups []ID
}
