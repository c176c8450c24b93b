package scheduler

import (
	"errors"
	"fmt"

	"github.com/xylem-project/xylem/tree"
)

// On the wire an epoch is one number: the term in the upper bits, the sequence below.
const (
	seqBits = 40
	maxTerm = 1<<(64-seqBits) - 1
	maxSeq  = 1<<seqBits - 1
)

var errOverflow = errors.New("epoch overflow")

// wireEpoch returns the number that agents compare.
func wireEpoch(e tree.Epoch) (uint64, error) {
	if e.Term > maxTerm || e.Seq > maxSeq {
		return 0, fmt.Errorf("epoch %v: %w", e, errOverflow)
	}
	return e.Term<<seqBits | e.Seq, nil
}
