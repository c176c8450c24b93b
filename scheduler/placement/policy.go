package placement

import (
	"errors"
	"fmt"
	"strings"
)

// Instance is the number by which the caller knows an instance of the function. It may be given to another instance only when nothing is under way
// on the one that had it.
//
// With consistent-hash, gateways that use the same numbers agree on where colours are; with hash-slots, if they add and remove them in the same
// order, too.
type Instance uint32

// Policy picks instances for the invocations of one function.
type Policy interface {
	// Pick returns the instance for an invocation with this colour, false if there are no instances. An empty colour is no hint: such
	// invocations are spread by load.
	Pick(colour string) (Instance, bool)
	// Add takes an instance in, and returns what moves to it. One that is there already changes nothing.
	Add(Instance) Moves
	// Remove takes an instance out, and returns where its colours move. One that is not there changes nothing.
	Remove(Instance) Moves
}

// LoadAware is a Policy that looks at the load of instances. What is load is for the caller to say: usually the number of invocations that are
// under way on an instance.
type LoadAware interface {
	// Assigned notes that an invocation has been sent to an instance, Done that it is no longer there. Unknown instances are ignored.
	Assigned(Instance)
	Done(Instance)
}

// Rebalancer is a Policy that measures. Its owner calls Rebalance from time to time, every few seconds.
type Rebalancer interface {
	Rebalance() Moves
}

// Lister is a Policy that lets an idle instance pull waiting invocations of colours that are not its own.
type Lister interface {
	// Candidates appends the instances that may do invocations of this colour, the best first.
	Candidates(colour string, to []Instance) []Instance
}

// Moves says what changed its owner, one Move for each pair of instances, in no order. Nothing is reported when there was no owner
// before or is none afterwards.
type Moves []Move

// Move is what moved from one instance to another.
type Move struct {
	From, To Instance
	Slots    []Slot   // of policies with hash slots
	Colours  []string // that are remembered
}

// Config holds what the policies can be told; zero values stand for the defaults.
type Config struct {
	// LoadBound is how much load an instance may have of the mean of all, more than 1; an invocation that would exceed it goes to another
	// instance. Default 0: no bound. For adaptive only, which needs LoadAware's calls for it.
	LoadBound float64
	// Spill is how many instances, the owner included, may share the invocations of a colour before any other is asked. Default 4. For adaptive
	// only.
	Spill int
	// Warm is of how many colours an instance can keep the data at a time. If that is not enough for all colours, some instances are reserved for the
	// hottest, so that these stay warm. Default 0: not known, none is reserved. For adaptive only.
	Warm int
	// Colours is how many colours are remembered, about 100 bytes each. Beyond it half of them is forgotten: the coldest, if the policy counts.
	// Default 131,072.
	Colours int
	// Seed varies what is random.
	Seed uint64
}

const (
	defaultSpill   = 4
	maxSpill       = 64
	defaultColours = 1 << 17
)

// ErrConfig is the kind of errors in what a policy was told.
var ErrConfig = errors.New("invalid placement")

// The names of the policies.
const (
	NameRandom         = "random"
	NameRoundRobin     = "round-robin"
	NameConsistentHash = "consistent-hash"
	NameHashSlots      = "hash-slots"
	NameLeastAssigned  = "least-assigned"
	NameAdaptive       = "adaptive"
)

// Names returns the names that New knows.
func Names() []string {
	return []string{NameRandom, NameRoundRobin, NameConsistentHash, NameHashSlots, NameLeastAssigned, NameAdaptive}
}

// New returns a policy without instances by its name.
func New(name string, cfg Config) (Policy, error) {
	if err := cfg.validate(name); err != nil {
		return nil, err
	}
	switch name {
	case NameRandom:
		return newRandom(cfg.Seed), nil
	case NameRoundRobin:
		return newRoundRobin(), nil
	case NameConsistentHash:
		return newRing(cfg), nil
	case NameHashSlots:
		return newHashSlots(cfg), nil
	case NameLeastAssigned:
		return newLeastAssigned(cfg), nil
	case NameAdaptive:
		return newAdaptive(cfg), nil
	}
	return nil, fmt.Errorf("%w: there is no policy %q, only %s", ErrConfig, name, strings.Join(Names(), ", "))
}

// validate checks a configuration and fills in the defaults.
func (c *Config) validate(policy string) error {
	if c.Spill == 0 {
		c.Spill = defaultSpill
	} else if policy != NameAdaptive {
		return fmt.Errorf("%w: policy %s has no spill", ErrConfig, policy)
	}
	if c.Colours == 0 {
		c.Colours = defaultColours
	}
	switch {
	case c.LoadBound != 0 && policy != NameAdaptive:
		return fmt.Errorf("%w: policy %s knows no load bound", ErrConfig, policy)
	case c.LoadBound != 0 && !(c.LoadBound > 1 && c.LoadBound <= 1000):
		return fmt.Errorf("%w: load bound %v, must be more than 1, or 0 for none", ErrConfig, c.LoadBound)
	case c.Warm != 0 && policy != NameAdaptive:
		return fmt.Errorf("%w: policy %s does not ask what stays warm", ErrConfig, policy)
	case c.Warm < 0:
		return fmt.Errorf("%w: %d colours that stay warm, must not be negative", ErrConfig, c.Warm)
	case c.Spill < 1 || c.Spill > maxSpill:
		return fmt.Errorf("%w: spill over %d instances, must be 1 to %d", ErrConfig, c.Spill, maxSpill)
	case c.Colours < 1 || c.Colours > 1<<24:
		return fmt.Errorf("%w: %d colours to remember, must be 1 to %d", ErrConfig, c.Colours, 1<<24)
	}
	return nil
}
