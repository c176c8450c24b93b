package treesim

import (
	"cmp"
	"fmt"
	"time"

	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// Config of a simulation. Agents, Blocks and BlockSize are needed.
type Config struct {
	// Seed of everything that is left to chance (see the package).
	Seed uint64 `json:"seed"`
	// Agents is how many machines join the tree.
	Agents int `json:"agents"`
	// Stripes of the tree: 1, 2 or 4. Default 2.
	Stripes int `json:"stripes"`
	// Blocks and BlockSize are the image: so many blocks of so many stored bytes.
	Blocks    int   `json:"blocks"`
	BlockSize int64 `json:"blockSize"`
	// Network is the way between hosts.
	Network NetworkConfig `json:"network"`
	// Link is each agent's. Default 1 Gbit/s each way. Links has those of exceptions, by number of the agent.
	Link  Link         `json:"link"`
	Links map[int]Link `json:"links,omitempty"`
	// Registry is the registry's link, Latency what it takes to answer before the first byte. Default as Link, and 5 ms.
	Registry Link          `json:"registry"`
	Latency  time.Duration `json:"latency"`
	// Connections is how many requests an agent makes to the registry at a time. Default 8.
	Connections int `json:"connections"`
	// ReadTimeout bounds a read. Default 30 s.
	ReadTimeout time.Duration `json:"readTimeout"`
	// Arrive is the time over which agents join, one after the other in a random order. Default 0: all at once.
	Arrive time.Duration `json:"arrive"`
	// Settled says that the clock of the work begins when the tree is there and its edges are open.
	Settled bool `json:"settled"`
	// Measured says that agents know the rates of their uplinks from the beginning, as from earlier images. Others measure them.
	Measured bool `json:"measured"`
	// Programs are containers that start at once, spread evenly over the agents. Without them all agents want all blocks.
	Programs Programs `json:"programs"`
	// Faults happen while the work is done.
	Faults []Fault `json:"faults,omitempty"`
	// Limit is when a simulation is given up, in virtual time. Default 5 min.
	Limit time.Duration `json:"limit"`
	// Node and Member are the templates of agents' configurations.
	Node   stream.NodeConfig `json:"-"`
	Member member.Config     `json:"-"`
}

// Programs are containers that read the first blocks of the image, those of the startup record, while they start.
type Programs struct {
	Count int `json:"count"`
	// Reads is how many blocks a program reads, one after the other.
	Reads int `json:"reads"`
	// Compute is what a program computes in all between its reads; each has up to a tenth more or less.
	Compute time.Duration `json:"compute"`
	// Strays is the part of reads that are of any other block of the record than the next one.
	Strays float64 `json:"strays"`
	// Unrecorded says that no startup record exists: nothing is fetched ahead, and what somebody reads is pushed by number.
	Unrecorded bool `json:"unrecorded"`
}

func (c Config) withDefaults() (Config, error) {
	c.Stripes = cmp.Or(c.Stripes, 2)
	c.Link.Up, c.Link.Down = cmp.Or(c.Link.Up, gigabit), cmp.Or(c.Link.Down, gigabit)
	c.Registry.Up, c.Registry.Down = cmp.Or(c.Registry.Up, c.Link.Up), cmp.Or(c.Registry.Down, c.Link.Down)
	c.Latency = cmp.Or(c.Latency, 5*time.Millisecond)
	c.Connections = cmp.Or(c.Connections, 8)
	c.ReadTimeout = cmp.Or(c.ReadTimeout, 30*time.Second)
	c.Limit = cmp.Or(c.Limit, 5*time.Minute)
	c.Member.Grace = cmp.Or(c.Member.Grace, time.Second)
	c.Network.Seed = cmp.Or(c.Network.Seed, c.Seed)
	if c.Agents < 1 || c.Programs.Reads > c.Blocks {
		return c, fmt.Errorf("treesim: %d agents, programs that read %d of %d blocks", c.Agents, c.Programs.Reads, c.Blocks)
	}
	return c, nil
}

// gigabit is 1 Gbit/s in bytes a second.
const gigabit = 125_000_000

// wanted is how many bytes each agent gets.
func (c Config) wanted() int64 {
	if c.Programs.Count > 0 {
		return int64(c.Programs.Reads) * c.BlockSize
	}
	return int64(c.Blocks) * c.BlockSize
}

// LowerBound returns the time that no way to give everybody all blocks can beat.
func (c Config) LowerBound() time.Duration {
	f, n, us := float64(c.wanted()), float64(c.Agents), float64(c.Registry.Up)
	bound := max(f/us, f/float64(c.Link.Down), n*f/(us+n*float64(c.Link.Up)))
	return time.Duration(bound * 1e9)
}
