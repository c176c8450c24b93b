package api

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// ContractNative is that of package scheduler/sdk: messages and sealed memory over a unix socket.
const ContractNative Contract = "native"

// Where an agent's calls for data buckets are on its work connection. {session} is Session.Path, {object} is "bucket/key", both parts escaped.
const (
	WorkSessions = "/v1/sessions" // PUT /{session} with a SessionStart; GET: a SessionStatus; POST /{session}/end, /{session}/cancel with a SessionCancel
	WorkObjects  = "/v1/objects"  // GET, PUT and DELETE /{session}/{object}: its bytes, with an ObjectInfo in HeaderObject
)

// Where a scheduler's calls for the agents of its sessions are. All are POSTs with a client certificate.
const (
	PathSessionEvents = "/v1/session-events" // SessionEvents, answer SessionVerdicts
	PathSessionTaken  = "/v1/session-taken"  // SessionHandover: the scheduler is its owner from then on
)

// Headers of an invocation that belongs to a session, beside those of every invocation.
const (
	HeaderSession = "Xylem-Session-Of" // JSON of a Caller
	HeaderObject  = "Xylem-Object"     // JSON of an ObjectInfo
)

// InlineObject is how large an object may be, in bytes, that travels inside messages.
const InlineObject = 64 << 10

// Session names one run of an application.
type Session struct {
	Namespace string `json:"namespace"`
	App       string `json:"app"`
	ID        string `json:"id"` // without '/', unless a trigger across sessions began it
}

// ObjectName names an object. Key and ID may have any bytes of UTF-8.
type ObjectName struct {
	Session
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
}

// ObjectInfo is what is known of an object. Objects never change once put.
type ObjectInfo struct {
	ObjectName
	Size int64 `json:"size"` // bytes
	// Digest of its bytes; empty for one that has not left its node yet.
	Digest digest.Digest `json:"digest,omitempty"`
	Group  string        `json:"group,omitempty"` // for triggers that gather by groups
	// Invocation and Attempt that put it; none for input from outside.
	Invocation string `json:"invocation,omitempty"`
	Attempt    int    `json:"attempt,omitempty"`
	// Durable says that it is in the durable store: it outlives every node.
	Durable bool `json:"durable,omitempty"`
	// Nodes are the peers of agents that hold it.
	Nodes []string `json:"nodes,omitempty"`
	// Inline are its bytes, if it has at most InlineObject of them and travels inside a message.
	Inline []byte `json:"inline,omitempty"`
}

// Caller is an invocation of a session, as the agent that runs it and its program know it.
type Caller struct {
	Session
	Function   string `json:"function"` // as the application names it
	Invocation string `json:"invocation"`
	Attempt    int    `json:"attempt"`
	Trigger    string `json:"trigger,omitempty"` // that caused it; none for input from outside
	// Owner is the peer of the agent that owns the session, or the URL of the scheduler that does.
	Owner string `json:"owner"`
}

// Firing is the payload of an invocation of a session, JSON for the contracts "lambda" and "http". What the trigger says the function gets
// decides whether Objects have their bytes: those of contract "native" fetch larger ones themselves, the others have all of them inline.
type Firing struct {
	Caller
	Objects []ObjectInfo `json:"objects"`
}

// SessionStart lets an agent own a session: evaluate its triggers and run its functions.
type SessionStart struct {
	Session
	Declaration string `json:"declaration"` // of the application, TOML, as package scheduler/trigger/app reads it
	Version     string `json:"version"`     // of the declaration
	// Functions are the versions that run, by the names that the application has for them.
	Functions map[string]Function `json:"functions"`
	// Inputs are put before anything else: new ones inline, or durable ones of a run that was lost.
	Inputs []ObjectInfo `json:"inputs,omitempty"`
	// Ended says that no more input comes.
	Ended bool `json:"ended,omitempty"`
}

// SessionCancel ends a session at once.
type SessionCancel struct {
	Why string `json:"why"`
}

// SessionEvent is something that happened on an agent in a session that it does not own, or that its scheduler has to keep. One field is set.
type SessionEvent struct {
	Session
	At       time.Time      `json:"at"`
	Put      *ObjectInfo    `json:"put,omitempty"`
	Announce *Announcement  `json:"announce,omitempty"`
	Step     *SessionStep   `json:"step,omitempty"`
	Over     *SessionStatus `json:"over,omitempty"`
}

// SessionEvents are some, in their order.
type SessionEvents struct {
	Events []SessionEvent `json:"events"`
}

// SessionVerdicts answers them, one for each: what was wrong with it, or "".
type SessionVerdicts struct {
	Errors []string `json:"errors"`
}

// Announcement says at run time what a trigger waits for.
type Announcement struct {
	Trigger string   `json:"trigger"`
	Keys    []string `json:"keys,omitempty"` // of a dynamic join, or the controls of a dynamic group
	// Control says that all objects of these groups are there, as far as Source knows; no groups: all there are.
	Source string   `json:"source,omitempty"`
	Groups []string `json:"groups,omitempty"`
}

// A StepState is where an attempt of an invocation of a session is.
type StepState string

const (
	StepWaiting   StepState = "waiting"
	StepRunning   StepState = "running"
	StepDone      StepState = "done"
	StepFailed    StepState = "failed"
	StepCancelled StepState = "cancelled"
	StepDead      StepState = "dead letter"
)

// SessionStep is an attempt of an invocation.
type SessionStep struct {
	Function   string        `json:"function"`
	Invocation string        `json:"invocation"`
	Attempt    int           `json:"attempt"`
	Trigger    string        `json:"trigger,omitempty"`
	Node       string        `json:"node,omitempty"`
	State      StepState     `json:"state"`
	Why        string        `json:"why,omitempty"`
	Objects    []string      `json:"objects,omitempty"` // as "bucket/key", the first hundred
	Fired      time.Time     `json:"fired"`
	Began      time.Time     `json:"began,omitzero"`
	Took       time.Duration `json:"took,omitempty"`
}

// SessionStatus is what is known of a session.
type SessionStatus struct {
	Session
	Version string        `json:"version"`
	Owner   string        `json:"owner"` // peer of an agent, or URL of a scheduler
	Began   time.Time     `json:"began"`
	Over    time.Time     `json:"over,omitzero"`
	Outcome string        `json:"outcome,omitempty"` // once it is over, as package scheduler/trigger names it
	Why     string        `json:"why,omitempty"`
	Waiting []string      `json:"waiting,omitempty"` // what it waits for
	Objects int           `json:"objects"`
	Bytes   int64         `json:"bytes"`
	Count   int           `json:"count"`           // attempts of invocations
	Steps   []SessionStep `json:"steps,omitempty"` // the latest ten thousand
}

// SessionHandover is a session that its agent gives to its scheduler, because its work does not fit on one node any more.
type SessionHandover struct {
	SessionStart
	State   []byte        `json:"state"`           // JSON of a trigger.Snapshot with this session only
	Objects []ObjectInfo  `json:"objects"`         // all of them
	Steps   []SessionStep `json:"steps,omitempty"` // what runs goes on, and is reported to the new owner
}
