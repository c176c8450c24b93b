// Package up runs everything on one machine: a registry, containerd, a scheduler and an agent, which knows the functions that the
// scheduler's API makes.
//
// It stands around the way of the data, whose parts it starts from the back to the front and stops in the opposite order:
//
//	registry --> containerd --> scheduler --> agent
//
// Registry and containerd are the machine's programs, run as children with configurations and directories of their own, so that nothing
// of the machine is changed; scheduler and agent run in this process.
package up

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/scheduler"
	"github.com/xylem-project/xylem/scheduler/api"
)

// Config of Run.
type Config struct {
	Agent     agent.Config
	Scheduler scheduler.Config
	// Registry is the TCP address of the registry; "" for none.
	Registry string
	// Peers is the TCP address at which other machines' agents could get blocks.
	Peers netip.AddrPort
	// Ready is called when functions can be made. May be nil.
	Ready func()
}

// Run runs everything until ctx ends or a part fails.
func Run(ctx context.Context, cfg Config) (err error) {
	cfg = cfg.together()
	log := cfg.Agent.Log
	for _, dir := range []string{cfg.Agent.Root, cfg.Agent.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	var children []*child
	defer func() {
		for i := len(children) - 1; i >= 0; i-- {
			err = errors.Join(err, children[i].stop())
		}
	}()
	for _, begin := range []func(Config) (*child, error){startRegistry, startContainerd} {
		c, err := begin(cfg)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		children = append(children, c)
		if err := c.wait(ctx); err != nil {
			return err
		}
		log.Info("started", "program", c.name, "at", c.address)
	}
	return runParts(ctx, cfg, children)
}

// startTimeout bounds the start of each part.
const startTimeout = 30 * time.Second

// together returns the configuration in which the parts know each other.
func (cfg Config) together() Config {
	cfg.Scheduler.State, cfg.Scheduler.Root = cfg.Agent.State, filepath.Join(cfg.Agent.Root, "scheduler")
	cfg.Agent.Schedulers = []string{"https://" + cfg.Scheduler.Listen}
	cfg.Agent.JoinTokenFile = cfg.Scheduler.TokenFile()
	cfg.Agent.Listen = cfg.Peers
	cfg.Agent.Functions.Enabled = true
	cfg.Agent.Functions.Containerd = filepath.Join(cfg.Agent.State, "containerd.sock")
	cfg.Scheduler.Log = cfg.Agent.Log
	return cfg
}

// runParts runs scheduler and agent, the agent first to stop, until ctx ends, one of them fails or a child does.
func runParts(ctx context.Context, cfg Config, children []*child) error {
	group, ctx := errgroup.WithContext(ctx)
	lasting, over := context.WithCancel(context.WithoutCancel(ctx))
	defer over()
	scheduled := make(chan error, 1)
	go func() { scheduled <- scheduler.Run(lasting, cfg.Scheduler) }()
	for _, c := range children {
		group.Go(func() error { return c.watch(ctx) })
	}
	group.Go(func() error {
		defer over()
		if err := poll(ctx, "scheduler", func(ctx context.Context) error { return api.NewAdmin(cfg.Scheduler.Socket()).Ready(ctx) }); err != nil {
			return err
		}
		return agent.Run(ctx, cfg.Agent)
	})
	group.Go(func() error {
		err := <-scheduled
		if err == nil && ctx.Err() == nil {
			err = errors.New("the scheduler ended")
		}
		return err
	})
	group.Go(func() error { return announce(ctx, cfg) })
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// announce tells when the agent takes work.
func announce(ctx context.Context, cfg Config) error {
	user, err := api.NewUser(api.UserConfig{URL: "http://" + cfg.Scheduler.Listen})
	if err != nil {
		return err
	}
	err = poll(ctx, "agent", func(ctx context.Context) error {
		nodes, err := user.Nodes(ctx)
		if err == nil && len(nodes) == 0 {
			err = errors.New("it takes no work yet")
		}
		return err
	})
	if err == nil && cfg.Ready != nil {
		cfg.Ready()
	}
	return err
}

// poll waits until something can be done.
func poll(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s does not start: %w", what, err)
		case <-ticker.C:
		}
	}
}

// dialable returns nil when somebody listens.
func dialable(ctx context.Context, network, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}
