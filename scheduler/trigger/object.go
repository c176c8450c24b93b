package trigger

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// What things are called. Names of the application (Function, Bucket, Name) are 1 to 64 letters, digits, '-', '_', '.'.
type (
	// Function names a function of the application.
	Function string
	// Bucket names a data bucket of the application.
	Bucket string
	// Name is that of a trigger.
	Name string
	// Session names one run of the application. The owner's names have no '/': those with one are of sessions that triggers across
	// sessions begin.
	Session string
	// Key names an object within its bucket and session.
	Key string
	// Invocation names a run of a function within its session, over all attempts. Those that triggers cause are called
	// "trigger/part"; the owner's, which begin a session's work, have no '/'.
	Invocation string
	// Group is what DynamicGroup gathers objects by.
	Group string
)

// Kinds of errors.
var (
	// ErrInvalid says that an event or a configuration cannot be.
	ErrInvalid = errors.New("invalid")
	// ErrSession says that the session is not open: it has not begun, or is over.
	ErrSession = errors.New("session is not open")
	// ErrConflict says that what is there already says something else.
	ErrConflict = errors.New("conflict")
)

// Source says who put an object.
type Source struct {
	Invocation Invocation `json:"invocation"`
	Attempt    int        `json:"attempt,omitempty"`
}

// Object is what is known of an object; it never changes once put, and its bytes are elsewhere.
type Object struct {
	Session Session `json:"session"`
	Bucket  Bucket  `json:"bucket"`
	Key     Key     `json:"key"`
	Size    int64   `json:"size"` // bytes
	// Digest tells contents apart. Empty: not known, contents of the same size count as the same.
	Digest string `json:"digest,omitempty"`
	// Group is where DynamicGroup puts it; other triggers ignore it.
	Group Group `json:"group,omitempty"`
	// Source is who put it; none for input from outside.
	Source Source `json:"source,omitzero"`
}

const maxName = 1024 // bytes of a key, session, group or invocation

func (o *Object) validate() error {
	switch {
	case o.Key == "" || len(o.Key) > maxName:
		return fmt.Errorf("%w: key of %d bytes, want 1 to %d", ErrInvalid, len(o.Key), maxName)
	case len(o.Group) > maxName || len(o.Source.Invocation) > maxName:
		return fmt.Errorf("%w: object %.80q: group or source of more than %d bytes", ErrInvalid, o.Key, maxName)
	case !utf8.ValidString(string(o.Key)) || !utf8.ValidString(string(o.Group)) || !utf8.ValidString(o.Digest) || !utf8.ValidString(string(o.Source.Invocation)):
		return fmt.Errorf("%w: object %.80q: key, group, digest or source is not UTF-8", ErrInvalid, o.Key)
	case len(o.Digest) > maxName:
		return fmt.Errorf("%w: object %.80q: digest of %d bytes, at most %d", ErrInvalid, o.Key, len(o.Digest), maxName)
	case o.Size < 0:
		return fmt.Errorf("%w: object %.80q of %d bytes", ErrInvalid, o.Key, o.Size)
	}
	return nil
}

// ownName returns an error for a name that the owner of an evaluator may not give.
func ownName(what, name string) error {
	if name == "" || len(name) > maxName || strings.Contains(name, "/") || !utf8.ValidString(name) {
		return fmt.Errorf("%w: %s %.80q: want 1 to %d bytes of UTF-8 without '/'", ErrInvalid, what, name, maxName)
	}
	return nil
}

// Firing is an invocation to make. The same ID comes again only with a higher attempt, or from an evaluator that was rebuilt.
type Firing struct {
	Session  Session    `json:"session"`
	ID       Invocation `json:"id"`
	Trigger  Name       `json:"trigger,omitempty"` // none for another attempt of an invocation that the owner began
	Function Function   `json:"function"`
	Gets     Gets       `json:"gets,omitempty"`
	Attempt  int        `json:"attempt"`           // from 1
	Objects  []Object   `json:"objects,omitempty"` // in the order of keys for sets, else of arrival
}

// Cancel is an invocation whose result nobody needs any more.
type Cancel struct {
	Session  Session
	ID       Invocation
	Function Function
	Why      string
}

// DeadLetter is an invocation that is not tried again.
type DeadLetter struct {
	Session  Session
	ID       Invocation
	Function Function
	Attempts int
	Why      string
	Objects  []Object // what it was given, if its function has a rerun policy
}

// Ignored is an object that a trigger took, but will not pass on.
type Ignored struct {
	Trigger Name
	Object  Object
	Why     string
}

// An Outcome is how a session ended.
type Outcome string

const (
	OutcomeDone Outcome = "done"
	// OutcomeIncomplete is done, but triggers hold objects and wait for more that nobody will put.
	OutcomeIncomplete Outcome = "incomplete"
	OutcomeCancelled  Outcome = "cancelled"
	OutcomeLimit      Outcome = "limit exceeded"
)

// Ended is a session that is over.
type Ended struct {
	Session Session
	Outcome Outcome
	Why     string
	Waiting []string // what was still waited for, as Pending says it
}

// Output is what follows from an event. Its slices belong to the caller, its objects are shared and must not be changed.
type Output struct {
	Duplicate   bool // the object was there already: nothing was done
	Firings     []Firing
	Cancels     []Cancel
	DeadLetters []DeadLetter
	Ignored     []Ignored
	Ended       []Ended
}

// count writes "1 object" and "2 objects".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// instant is a point of an evaluator's own time, in nanoseconds. It does not go backwards.
type instant int64

func (i instant) add(d time.Duration) instant { return i + instant(d) }

// never is the instant of what does not come by itself.
const never instant = 1<<63 - 1
