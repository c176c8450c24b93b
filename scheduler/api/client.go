package api

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"

	"github.com/opencontainers/go-digest"
)

// A Handler is told what schedulers say. Its methods must not block: while one runs, nothing else comes from that scheduler.
type Handler interface {
	// Position says where the agent is in one stripe of an image that it entered. Calls for one image come one at a time, with
	// epochs that never go back in a stripe. None comes for an image that the agent left.
	Position(Position)
	// Revoked says which peers are not of the cluster any more, by peer ID: always all of them.
	Revoked(peers []string)
}

// ClientConfig of a Client. Everything but Token and Log is needed.
type ClientConfig struct {
	// Schedulers are some of the cluster's, as "https://host:port". The others become known from them.
	Schedulers []string
	// Token lets the agent join. It is needed until a certificate is in Dir, and again if that expired or became another cluster's.
	Token string
	// Dir keeps the certificate, that of the CA, and the list of revoked peers.
	Dir string
	// Key is the agent's identity: its peer ID is made of the public half.
	Key     ed25519.PrivateKey
	Handler Handler
	// Heartbeat says how the agent is now. It must not block. Images may name all images of the agent: the Client sends each
	// scheduler those whose trees are there.
	Heartbeat func() Heartbeat
	// Log is told of joins, sessions and their ends. Default: nobody.
	Log *slog.Logger
}

// A Client is an agent's side of its conversation with the schedulers. It keeps a session with every scheduler that owns the
// tree of an image of the agent, and with one if there is none. It is safe for concurrent use.
type Client struct {
	cfg ClientConfig
}

// ErrNotJoined says that the agent has no certificate of a cluster yet.
var ErrNotJoined = errors.New("not joined")

// NewClient returns a Client that does nothing before Run.
func NewClient(cfg ClientConfig) (*Client, error) { return &Client{cfg: cfg}, nil }

// Run joins the cluster if the agent has no certificate, and keeps sessions until ctx ends.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Enter says that the agent needs an image of total blocks in each stripe; ref is the name by which people know the image. The
// Client sees to it that the agent is in the image's tree until it leaves, whatever happens to schedulers meanwhile.
func (c *Client) Enter(image digest.Digest, ref string, total []int) {}

// Leave says that the agent does not need the image any more.
func (c *Client) Leave(image digest.Digest) {}

// Reachable tells whether a session with some scheduler is up. If none is, nobody will say soon where the agent's place is.
func (c *Client) Reachable() bool { return false }

// Stripes returns how many stripes the trees of the cluster have, 0 before the first session.
func (c *Client) Stripes() int { return 0 }

// Credential returns the agent's certificate (DER), which agents show to each other; nil before the agent joined.
func (c *Client) Credential() []byte { return nil }

// Admit returns nil if the credential is one of this cluster for that peer ID, valid now, and the peer is not revoked.
func (c *Client) Admit(peer string, credential []byte) error { return ErrNotJoined }

// Tree returns the tree of an image from whoever owns it.
func (c *Client) Tree(ctx context.Context, image digest.Digest) (Tree, error) {
	return Tree{}, ErrNotJoined
}

// Trees lists the trees of the cluster.
func (c *Client) Trees(ctx context.Context) ([]TreeInfo, error) { return nil, ErrNotJoined }

// TreeInfo says which tree is where.
type TreeInfo struct {
	Image digest.Digest `json:"image"`
	Ref   string        `json:"ref,omitempty"`
	Owner string        `json:"owner"` // scheduler, empty if nobody has taken it over yet
}
