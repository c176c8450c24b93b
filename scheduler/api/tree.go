package api

import (
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Peer is an agent and where its children reach it.
type Peer struct {
	ID    string           `json:"id"` // text form of the libp2p peer ID
	Addrs []netip.AddrPort `json:"addrs"`
}

// A Position says where an agent is in one stripe of an image's tree. Of two, that with the higher epoch counts; one with the
// same epoch brings other backups or children.
type Position struct {
	Image   digest.Digest `json:"image"`   // of the block image's manifest
	Stripes int           `json:"stripes"` // of the tree
	Stripe  int           `json:"stripe"`
	// Epoch orders the positions of a stripe of a tree, over all schedulers that ever own it.
	Epoch uint64 `json:"epoch"`
	// Parent feeds the agent. Nil: the agent is the stripe's root, holds the lease to read it from the registry, and asks
	// Children that hold a block first.
	Parent *Peer `json:"parent,omitempty"`
	// Old is the parent that goes on feeding until Parent does, empty if there is none.
	Old string `json:"old,omitempty"`
	// LeaveOld says that a new root does not ask Old for what that has: it is slow, or not trusted.
	LeaveOld bool `json:"leaveOld,omitempty"`
	// Backups are whom to ask, in this order, when the parent is in trouble; after them the registry.
	Backups []Peer `json:"backups,omitempty"`
	// Standby says that the agent follows the root, its parent: it reads the registry as soon as the edge to it breaks.
	Standby bool `json:"standby,omitempty"`
	// Children are whom the agent feeds.
	Children []Child `json:"children,omitempty"`
}

// A Child is a member that an agent feeds in a stripe.
type Child struct {
	Peer
	Epoch uint64 `json:"epoch"` // of its attachment
	// Avoid says that it is slow, or not trusted: the root does not ask it for what it has.
	Avoid bool `json:"avoid,omitempty"`
}

// Membership says how an agent gets on with an image.
type Membership struct {
	Image digest.Digest `json:"image"`
	Held  []int         `json:"held"` // blocks of each stripe that the agent has
	Total []int         `json:"total"`
	// Epochs are those of the latest positions that the agent knows, by stripe; 0 for none.
	Epochs []uint64 `json:"epochs"`
	// Rates are bytes per second that came from the parent of each stripe since the last heartbeat.
	Rates []int64 `json:"rates,omitempty"`
	// Failed are peers that this agent could not get blocks from although it tried, since the last heartbeat.
	Failed []string `json:"failed,omitempty"`
	// CutOff are peers that sent wrong bytes or broke the protocol, for as long as this agent refuses them.
	CutOff []string `json:"cutOff,omitempty"`
}

// A Heartbeat says how an agent is. It goes to each scheduler that owns a tree of the agent, and to one if there is none.
type Heartbeat struct {
	Agent    Peer         `json:"agent"`
	Zone     string       `json:"zone,omitempty"`
	Budget   int          `json:"budget,omitempty"` // children that it may feed in all trees; 0: the cluster's default
	Children int          `json:"children"`         // that it feeds now, in all trees of all schedulers
	Draining bool         `json:"draining,omitempty"`
	Images   []Membership `json:"images,omitempty"` // of trees that the scheduler owns
	// Uplink is how many bytes per second the children took together while those who are Waiting had to wait for more; 0: nobody had
	// to of late.
	Uplink  int64    `json:"uplink,omitempty"`
	Waiting []string `json:"waiting,omitempty"`
	// Sent and Received are the most bytes of blocks per second that the agent sent and received of late; 0: not known.
	Sent     int64 `json:"sent,omitempty"`
	Received int64 `json:"received,omitempty"`
}

// Tree is a function tree as it is now.
type Tree struct {
	Image   digest.Digest `json:"image"`
	Ref     string        `json:"ref,omitempty"` // by which the image was named first
	Owner   string        `json:"owner"`         // scheduler
	Stripes int           `json:"stripes"`
	Members []TreeMember  `json:"members"`
}

// TreeMember is an agent in a tree.
type TreeMember struct {
	Agent Peer      `json:"agent"`
	Zone  string    `json:"zone,omitempty"`
	Role  string    `json:"role"` // any, spare or leaf
	Seen  time.Time `json:"seen"` // last heartbeat
	// By stripe: who feeds it (empty for the root), how deep it is, how many blocks it has of how many, and bytes per second.
	Parents []string `json:"parents"`
	Depths  []int    `json:"depths"`
	Held    []int    `json:"held"`
	Total   []int    `json:"total"`
	Rates   []int64  `json:"rates"`
}

// TreeInfo says which tree is where.
type TreeInfo struct {
	Image digest.Digest `json:"image"`
	Ref   string        `json:"ref,omitempty"`
	Owner string        `json:"owner"` // URL of the scheduler; it may have died, and nobody taken the tree over yet
}

// AgentInfo is an agent as one scheduler knows it.
type AgentInfo struct {
	Agent    Peer      `json:"agent"`
	Zone     string    `json:"zone,omitempty"`
	Seen     time.Time `json:"seen"`    // last sign of life
	Session  bool      `json:"session"` // whether it has one with this scheduler
	Trees    int       `json:"trees"`   // of this scheduler that it is in
	Children int       `json:"children"`
}
