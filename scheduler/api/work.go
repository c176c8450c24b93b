package api

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// WorkProtocol is the ALPN protocol of the connection on which a scheduler gives an agent work. The agent dials the scheduler and
// shows its certificate; then the roles change: the scheduler sends HTTP/2 requests, and the agent answers them. So agents need no
// port of their own for it, and nobody else can reach it.
const WorkProtocol = "xylem-work/1"

// Where an agent's calls are on that connection. {instance} is chosen by the scheduler.
const (
	WorkNode      = "/v1/node"      // GET ?scheduler=NAME: a NodeStatus. Instances whose IDs begin with a NAME that does not ask any more are stopped in time
	WorkImages    = "/v1/images"    // POST ImageRequest: an ImageAnswer
	WorkInstances = "/v1/instances" // PUT /{instance} with a StartRequest: an Instance, as soon as it is ready; DELETE /{instance}: it is gone
	WorkInvoke    = "invoke"        // POST /v1/instances/{instance}/invoke: one invocation
	WorkLane      = "/v1/lane"      // GET with Upgrade: requests by package lane from then on, for invocations that need not stream
	WorkLogs      = "/v1/logs"      // GET /{namespace}/{name}?version=&since=&limit=: LogLines, one a line, oldest first
)

// Headers of an invocation, on its way from the scheduler to the instance. All others of the request and of the answer are the
// function's own, and pass unchanged for the contract "http".
const (
	HeaderInvocation    = "Xylem-Invocation"     // ID of the invocation
	HeaderDeadline      = "Xylem-Deadline"       // Unix milliseconds
	HeaderClientContext = "Xylem-Client-Context" // base64, as in AWS's API
	HeaderColor         = "Xylem-Color"
	HeaderTrace         = "Xylem-Trace" // for _X_AMZN_TRACE_ID
	HeaderTail          = "Xylem-Tail"  // request: "1" if the answer is to end with the last of the log
	// HeaderPath and HeaderMethod are what the program of the contract "http" is asked. Default "/" and POST.
	HeaderPath   = "Xylem-Path"
	HeaderMethod = "Xylem-Method"
	// HeaderFunctionError says in the answer that the function failed by itself: "Handled" or "Unhandled". Its body is then
	// AWS's error object. For an answer that fails in the middle it is a trailer.
	HeaderFunctionError = "Xylem-Function-Error"
	// HeaderLogTail is a trailer: the last 4 KiB of the log, base64.
	HeaderLogTail = "Xylem-Log-Tail"
	// HeaderFailure says that the platform failed, not the function: one of the Failure constants. The body is then a WorkFailure, and
	// Retry-After says when another try makes sense, if that is known. For an answer that breaks off in the middle it is a trailer.
	HeaderFailure = "Xylem-Failure"
)

// Why an instance did not start, or an invocation has no answer of the function.
const (
	FailureNoInstance = "NoInstance" // there is no such instance here (any more): the invocation has not begun
	FailureBusy       = "Busy"       // the instance has as many invocations as it takes: it has not begun
	FailureExited     = "Exited"     // the instance's process ended, or broke off, during the invocation
	FailureTimeout    = "Timeout"    // the deadline passed
	FailureNoRoom     = "NoRoom"     // the node has not enough memory or CPU for the instance
	FailureImage      = "Image"      // the image cannot be had or cannot run here
	FailureInit       = "Init"       // the program ended, or reported an error, before it was ready
	FailureProtocol   = "Protocol"   // the program's answer is none by its contract
	FailureTooLarge   = "TooLarge"   // the payload or the answer is larger than allowed
)

// WorkFailure is the body of an answer with HeaderFailure.
type WorkFailure struct {
	Kind  string `json:"kind"` // the same
	Error string `json:"error"`
	// Log is the last of what the program printed, if it did not start.
	Log string `json:"log,omitempty"`
}

// MaxPayload is how large the payload of an invocation, or an answer that is not streamed, may be, in bytes, as in AWS Lambda.
const MaxPayload = 6 << 20

// StartRequest asks for an instance.
type StartRequest struct {
	Function Function `json:"function"`
}

// InstanceState is where an instance is in its life.
type InstanceState string

const (
	InstanceStarting InstanceState = "starting"
	InstanceReady    InstanceState = "ready"
	InstancePaused   InstanceState = "paused" // ready, and frozen until its next invocation
	InstanceGone     InstanceState = "gone"
)

// Instance is a running copy of a function.
type Instance struct {
	ID       string        `json:"id"`
	Function Function      `json:"function"`
	State    InstanceState `json:"state"`
	InFlight int           `json:"inFlight"` // invocations
	Started  time.Time     `json:"started"`
	// Ready is how long the start took, from the request on; 0 before it is ready.
	Ready time.Duration `json:"ready,omitempty"`
}

// NodeStatus says what a node can run and runs.
type NodeStatus struct {
	Peer   string `json:"peer"`
	Zone   string `json:"zone,omitempty"`
	Memory int64  `json:"memory"` // bytes for instances, all together
	CPU    int    `json:"cpu"`    // thousandths of a core for instances, all together
	// Images are source manifests of which the node can start instances without asking a registry.
	Images    []digest.Digest `json:"images,omitempty"`
	Instances []Instance      `json:"instances,omitempty"`
}

// ImageRequest asks what an image's reference names now, and that it can run lazily.
type ImageRequest struct {
	Image string `json:"image"`
}

// ImageAnswer says it.
type ImageAnswer struct {
	Digest digest.Digest `json:"digest"` // manifest for the node's platform
	// Converted says whether there is a block image of it. If not, the first start on a node waits for the whole download.
	Converted  bool     `json:"converted"`
	Entrypoint []string `json:"entrypoint,omitempty"` // of the image's configuration, followed by its command
}

// LogLine is a line that a function printed.
type LogLine struct {
	Time       time.Time `json:"time"`
	Instance   string    `json:"instance"`
	Invocation string    `json:"invocation,omitempty"` // the only one that ran, if there was one
	Stream     string    `json:"stream"`               // "stdout" or "stderr"
	Text       string    `json:"text"`                 // without the newline; long lines are cut
	// Lost says how many lines were thrown away before this one.
	Lost int `json:"lost,omitempty"`
}
