package api

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Where a scheduler's calls are. All but PathJoin need a client certificate.
const (
	PathJoin      = "/v1/join"      // POST JoinRequest, answer JoinResponse
	PathRenew     = "/v1/renew"     // POST RenewRequest, answer JoinResponse
	PathSession   = "/v1/session"   // POST SessionRequest, answer Events, one a line, as long as the session lasts
	PathHeartbeat = "/v1/heartbeat" // POST Heartbeat, answer HeartbeatResponse
	PathEnter     = "/v1/enter"     // POST EnterRequest
	PathLeave     = "/v1/leave"     // POST LeaveRequest
	PathConvert   = "/v1/convert"   // POST ConvertRequest, answer Conversion
	PathConverted = "/v1/converted" // POST ConvertedRequest
	PathHolding   = "/v1/holding"   // POST HoldingRequest
	PathTrees     = "/v1/trees"     // GET a list of TreeInfo; below it, by image, a Tree
)

// SessionHeader names the session that a heartbeat, entering or leaving belongs to.
const SessionHeader = "Xylem-Session"

// Limits of what is read from the network, in bytes.
const (
	MaxRequest = 1 << 20 // body of a request
	MaxEvent   = 1 << 20 // line of a session
	maxAnswer  = 64 << 20
)

// MaxNamed is how many peers each list of a heartbeat may name.
const MaxNamed = 64

// JoinRequest asks for a certificate with a join token.
type JoinRequest struct {
	ID      string `json:"id"`      // of the token
	Secret  string `json:"secret"`  // of the token
	Request []byte `json:"request"` // PKCS #10, signed with the agent's key
}

// RenewRequest asks for a certificate with one that is valid still.
type RenewRequest struct {
	Request []byte `json:"request"`
}

// JoinResponse is a certificate and that of the CA, DER.
type JoinResponse struct {
	Certificate []byte `json:"certificate"`
	CA          []byte `json:"ca"`
}

// SessionRequest opens a session, which replaces the agent's former one with the same scheduler.
type SessionRequest struct {
	Heartbeat
	// Wanted are all images that the agent needs. It leaves the trees of others that the scheduler thinks it is in.
	Wanted []digest.Digest `json:"wanted"`
}

// An Event is what a scheduler says on a session; one of the fields is set.
type Event struct {
	Hello      *Hello    `json:"hello,omitempty"` // first
	Position   *Position `json:"position,omitempty"`
	Moved      *Moved    `json:"moved,omitempty"`
	Revoked    *[]string `json:"revoked,omitempty"`    // peer IDs, all of them
	Schedulers *[]string `json:"schedulers,omitempty"` // URLs of those that live
	Bye        string    `json:"bye,omitempty"`        // last: why the session ends
}

// Hello begins a session.
type Hello struct {
	Session    string        `json:"session"`
	Stripes    int           `json:"stripes"`  // of all trees
	Interval   time.Duration `json:"interval"` // between heartbeats
	Schedulers []string      `json:"schedulers"`
	Revoked    []string      `json:"revoked"`
}

// Moved says that an image's tree is not with this scheduler any more.
type Moved struct {
	Image digest.Digest `json:"image"`
	Owner string        `json:"owner,omitempty"` // URL of the new one, as far as it is known
}

// HeartbeatResponse answers a heartbeat.
type HeartbeatResponse struct {
	// Unknown are images whose trees the agent is not in, as far as this scheduler knows: it enters them again.
	Unknown []digest.Digest `json:"unknown,omitempty"`
}

// EnterRequest asks for places in an image's tree. They come on the session.
type EnterRequest struct {
	Image digest.Digest `json:"image"`
	Ref   string        `json:"ref,omitempty"`
	Total []int         `json:"total"` // blocks of each stripe
}

// LeaveRequest gives them up.
type LeaveRequest struct {
	Image digest.Digest `json:"image"`
}

// Failure is the body of every answer that says that a call failed.
type Failure struct {
	Error string `json:"error"`
	// Owner is the URL of the scheduler to ask instead (status 421).
	Owner string `json:"owner,omitempty"`
}

// TokenInfo is a join token without its secret.
type TokenInfo struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Uses    int       `json:"uses,omitempty"`   // joins that are left; 0: any number
}

// TokenRequest asks for a join token (POST /v1/tokens on the admin socket).
type TokenRequest struct {
	TTL  time.Duration `json:"ttl"`  // 0: valid until it is revoked
	Uses int           `json:"uses"` // joins; 0: any number
}

// TokenResponse is a new join token.
type TokenResponse struct {
	ID    string `json:"id"`
	Token string `json:"token"` // a secret
}
