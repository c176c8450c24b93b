package scheduler

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Kinds of errors that become an answer's status.
var (
	errInvalid     = errors.New("invalid")                 // 400
	errDenied      = errors.New("denied")                  // 403
	errNotFound    = errors.New("not found")               // 404
	errNoSession   = errors.New("no such session")         // 409
	errNoLease     = errors.New("no lease")                // 412
	errBusy        = errors.New("too many requests")       // 429
	errUnavailable = errors.New("the state store is away") // 503
)

// misdirected says that another scheduler owns the image's tree.
type misdirected struct {
	image digest.Digest
	owner string // URL, empty if it is not known
}

func (m *misdirected) Error() string {
	return fmt.Sprintf("the tree of %s is with scheduler %q", m.image, m.owner)
}
