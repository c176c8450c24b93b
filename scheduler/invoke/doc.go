// Package invoke brings invocations to instances of functions, and keeps as many instances as they need.
//
// It stands in the way of an invocation:
//
//	client --HTTP--> Gateway --Invocation--> Dispatcher --colour: placement.Policy--> instance
//	                                           | no instance is free                     ^
//	                                           +--> queue --older than 20 ms--> fleet.Start
//
// Each version of a function has a pool of instances. An invocation takes a free place of an instance at once: with a colour, of one of
// those that its function's policy names; without, of the one that was used last, so that others fall idle and go. If there
// is none it waits, in a queue that is bounded. What waits makes the pool grow; what is idle for the function's Keep goes. Pools of different
// schedulers share nothing but the nodes, each of which refuses what it has no room for.
package invoke

import (
	"errors"
	"fmt"
	"time"
)

// Errors that callers act on, beside those of packages function and fleet.
var (
	// ErrOverload says that too many invocations wait already: try again later.
	ErrOverload = errors.New("too many invocations wait")
	// ErrInterrupted says that the instance or its node died during the invocation, which may have had effects.
	ErrInterrupted = errors.New("the instance died during the invocation")
	// ErrClosed says that the scheduler stops.
	ErrClosed = errors.New("the scheduler stops")
)

// BackoffError says that instances of a function do not start, and until when no other is tried.
type BackoffError struct {
	Function string
	Until    time.Time
	Err      error // of the last start
}

func (e *BackoffError) Error() string {
	return fmt.Sprintf("instances of %s do not start, the next is tried in %v: %v", e.Function, max(0, time.Until(e.Until)).Round(time.Second), e.Err)
}

func (e *BackoffError) Unwrap() error { return e.Err }

// MaxEventPayload is how large the payload of an asynchronous invocation may be, in bytes, as in AWS Lambda.
const MaxEventPayload = 256 << 10

// colours of invocations are bounded; longer ones are cut.
const maxColour = 1024
