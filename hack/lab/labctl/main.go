// Command labctl makes a lab of many hosts on this machine that stays, runs commands on its hosts, and removes it.
//
//	labctl up --hosts 8 --link 100mbit --uplink h3=10mbit --agents
//	labctl run h1 -- xylem images          with the host's configuration in $XYLEM_CONFIG and $REGISTRY
//	labctl ls
//	labctl down
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/xylem-project/xylem/hack/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := command{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	os.Exit(c.run(ctx, os.Args[1:]))
}

// command is one run of the program.
type command struct {
	in       io.Reader
	out, err io.Writer
}

const usage = `usage: labctl up [FLAGS] | ls [--dir DIR] | run [--lab ID] [--dir DIR] HOST -- CMD... | down [--dir DIR] [ID]
'labctl up --help' lists the flags`

var errUsage = errors.New(usage)

// run returns the exit code: 0, 1 for a failure, 2 for wrong use, or that of the command that it ran.
func (c *command) run(ctx context.Context, args []string) int {
	verbs := map[string]func(context.Context, []string) error{"up": c.up, "down": c.down, "run": c.exec, "ls": c.list}
	if len(args) == 0 || verbs[args[0]] == nil {
		fmt.Fprintln(c.err, usage)
		return 2
	}
	err := verbs[args[0]](ctx, args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	case errors.Is(err, errUsage):
		fmt.Fprintln(c.err, err)
		return 2
	}
	fmt.Fprintln(c.err, "labctl:", err)
	return 1
}

// parse parses the flags of one verb; mistakes become one line.
func (c *command) parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(c.out)
		flags.PrintDefaults()
		return err
	}
	if err != nil {
		return fmt.Errorf("labctl %s: %w\n%w", flags.Name(), err, errUsage)
	}
	return nil
}

func (c *command) up(ctx context.Context, args []string) error {
	cfg, err := c.config(args)
	if err != nil {
		return err
	}
	l, err := lab.Up(ctx, cfg)
	if err != nil {
		return err
	}
	return c.print(l.State())
}

// config reads the flags of `labctl up`.
func (c *command) config(args []string) (lab.Config, error) {
	cfg := lab.Config{Detached: true, Log: c.err, Links: map[string]lab.Link{}}
	var both lab.Rate
	up, down := map[string]lab.Rate{}, map[string]lab.Rate{}
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.IntVar(&cfg.Hosts, "hosts", 4, "how many hosts, beside the registry's and the scheduler's")
	flags.TextVar(&both, "link", lab.Rate(0), "`rate` of each link in each direction, as 100mbit")
	flags.Func("uplink", "`HOST=RATE` of one host's link away from it; may be repeated", rates(up))
	flags.Func("downlink", "`HOST=RATE` of one host's link towards it; may be repeated", rates(down))
	flags.DurationVar(&cfg.Link.Queue, "queue", 0, "how long packets wait for their turn on a link at most (default 100ms)")
	flags.StringVar(&cfg.Link.Congestion, "congestion", "", "TCP congestion control, as cubic or bbr (default this machine's)")
	flags.BoolVar(&cfg.Agents, "agents", false, "run an agent on each host")
	flags.BoolVar(&cfg.Containerd, "containerd", false, "run containerd on each host")
	flags.BoolVar(&cfg.Scheduler, "scheduler", false, "run a scheduler that the agents join")
	flags.IntVar(&cfg.Stripes, "stripes", 0, "`number` of stripes of the trees (default the scheduler's)")
	flags.StringVar(&cfg.AgentConfig, "agent-config", "", "lines for the agents' configuration, `TOML`")
	flags.StringVar(&cfg.Xylem, "xylem", "bin/xylem", "the binary")
	flags.StringVar(&cfg.Dir, "dir", "", "`directory` of labs (default /var/tmp)")
	if err := c.parse(flags, args); err != nil {
		return cfg, err
	}
	if flags.NArg() != 0 {
		return cfg, errUsage
	}
	cfg.Link.Up, cfg.Link.Down = both, both
	for name, rate := range up {
		link := cfg.Link
		link.Up = rate
		cfg.Links[name] = link
	}
	for name, rate := range down {
		link, ok := cfg.Links[name]
		if !ok {
			link = cfg.Link
		}
		link.Down = rate
		cfg.Links[name] = link
	}
	return cfg, nil
}

func rates(into map[string]lab.Rate) func(string) error {
	return func(text string) error {
		host, value, ok := strings.Cut(text, "=")
		if !ok {
			return errors.New("want HOST=RATE")
		}
		var rate lab.Rate
		err := rate.UnmarshalText([]byte(value))
		into[host] = rate
		return err
	}
}

func (c *command) print(s lab.State) error {
	fmt.Fprintf(c.out, "lab %s in %s, registry %s\n", s.ID, s.Dir, s.Registry)
	table := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
	for _, h := range s.Hosts {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", h.Name, h.Address, h.Namespace, h.Config)
	}
	return table.Flush()
}

func (c *command) list(_ context.Context, args []string) error {
	var dir string
	asJSON := false
	flags := flag.NewFlagSet("ls", flag.ContinueOnError)
	flags.StringVar(&dir, "dir", "", "`directory` of labs (default /var/tmp)")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	if err := c.parse(flags, args); err != nil {
		return err
	}
	labs, err := lab.List(dir)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(c.out).Encode(labs)
	}
	for _, s := range labs {
		if err := c.print(s); err != nil {
			return err
		}
	}
	return nil
}

// down removes one lab, or all that no process owns.
func (c *command) down(ctx context.Context, args []string) error {
	var dir string
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	flags.StringVar(&dir, "dir", "", "`directory` of labs (default /var/tmp)")
	if err := c.parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() > 1 {
		return errUsage
	}
	removed, err := lab.Sweep(ctx, dir, flags.Arg(0), true)
	if err != nil {
		return err
	}
	if len(removed) == 0 && flags.NArg() == 1 {
		return fmt.Errorf("lab %s: there is none, or the process that made it still runs", flags.Arg(0))
	}
	for _, id := range removed {
		fmt.Fprintln(c.out, "removed", id)
	}
	return nil
}

// exec runs a command on a host, with this program's input and output.
func (c *command) exec(ctx context.Context, args []string) error {
	var dir, id string
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.StringVar(&dir, "dir", "", "`directory` of labs (default /var/tmp)")
	flags.StringVar(&id, "lab", "", "`ID` of the lab, if there are several")
	if err := c.parse(flags, args); err != nil {
		return err
	}
	argv := flags.Args()
	if len(argv) < 3 || argv[1] != "--" {
		return errUsage
	}
	s, err := find(dir, id)
	if err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if h.Name != argv[0] {
			continue
		}
		cmd := exec.CommandContext(ctx, argv[2], argv[3:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.in, c.out, c.err
		cmd.Env = append(os.Environ(), "REGISTRY="+s.Registry, "XYLEM_CONFIG="+h.Config, "LAB_DIR="+s.Dir)
		return h.Run(cmd)
	}
	return fmt.Errorf("lab %s has no host %q", s.ID, argv[0])
}

func find(dir, id string) (lab.State, error) {
	labs, err := lab.List(dir)
	if err != nil {
		return lab.State{}, err
	}
	var found []lab.State
	for _, s := range labs {
		if id == "" || s.ID == filepath.Base(id) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return lab.State{}, errors.New("there is no such lab: 'labctl up' makes one")
	case 1:
		return found[0], nil
	}
	return lab.State{}, fmt.Errorf("there are %d labs: name one with --lab", len(found))
}
