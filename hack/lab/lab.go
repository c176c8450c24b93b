package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/nodelab"
)

// Config of a Lab.
type Config struct {
	// Hosts is how many there are besides the registry's and the scheduler's, 1 to 250.
	Hosts int
	// Link is how each host is connected.
	Link Link
	// Links are the links of hosts that differ, by name: "h1" and so on, "registry", "scheduler".
	Links map[string]Link
	// Agents runs an agent on each host, and AgentConfig is added to their configuration files, TOML.
	Agents      bool
	AgentConfig string
	// Containerd runs containerd on each host.
	Containerd bool
	// ContainerdBinary and Ctr are its binaries. Default: Debian's.
	ContainerdBinary, Ctr string
	// Scheduler runs a scheduler, which the agents join.
	Scheduler bool
	// Functions lets the agents run functions. Needs Scheduler and Containerd.
	Functions bool
	// Stripes of the scheduler's trees. Default: the scheduler's.
	Stripes int
	// Xylem is the binary under test. Default "bin/xylem".
	Xylem string
	// Dir is where the lab makes its directory, in which the paths of sockets must stay short. Default /var/tmp.
	Dir string
	// Detached lets everything outlive the process that called Up. It is removed by Down or by Sweep.
	Detached bool
	// Log gets a line for each step. Default: none.
	Log io.Writer
}

const (
	registryName  = "registry"
	schedulerName = "scheduler"
)

func (cfg *Config) validate() error {
	switch {
	case cfg.Hosts < 1 || cfg.Hosts > maxHosts:
		return fmt.Errorf("a lab has 1 to %d hosts, not %d", maxHosts, cfg.Hosts)
	case cfg.Functions && !(cfg.Scheduler && cfg.Containerd):
		return errors.New("functions need a scheduler, and containerd on the hosts")
	case cfg.Scheduler && !cfg.Agents:
		return errors.New("a scheduler without agents has nothing to do")
	case os.Geteuid() != 0:
		return errors.New("network namespaces need root")
	}
	if err := cfg.Link.validate(); err != nil {
		return fmt.Errorf("links: %w", err)
	}
	names := []string{registryName, schedulerName}
	for i := range cfg.Hosts {
		names = append(names, hostName(i))
	}
	for name, link := range cfg.Links {
		if !slices.Contains(names, name) {
			return fmt.Errorf("link of %q: the lab has no such host", name)
		}
		if err := link.validate(); err != nil {
			return fmt.Errorf("link of %s: %w", name, err)
		}
	}
	for _, program := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: install iproute2", err)
		}
	}
	return nil
}

func hostName(i int) string { return fmt.Sprintf("h%d", i+1) }

// Lab is a running lab. Its methods and those of its hosts may be called at the same time, except that only one at a time may change the
// connections (Partition, Heal, StallLink) or one host's link or programs.
type Lab struct {
	// Services has the registry, with Push and Convert, which run on its host, and the lab's directory for the caller's files.
	Services *nodelab.Lab

	cfg       Config
	state     State
	lock      *os.File // held while the lab lives
	net       *network
	hosts     []*Host
	registry  *Host
	scheduler *controlPlane // or nil
}

// Up makes a lab, and removes first what labs left whose process was killed. ctx bounds Up only. The caller calls Down.
func Up(ctx context.Context, cfg Config) (_ *Lab, err error) {
	if cfg.Dir == "" {
		cfg.Dir = defaultDir
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if cfg.Xylem == "" {
		cfg.Xylem = "bin/xylem"
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Xylem, err = filepath.Abs(cfg.Xylem); err != nil {
		return nil, err
	}
	if _, err := Sweep(ctx, cfg.Dir, "", false); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	l := &Lab{cfg: cfg}
	if l.state.Dir, l.lock, err = claim(cfg.Dir); err != nil {
		return nil, err
	}
	l.state.ID, l.state.Detached = filepath.Base(l.state.Dir), cfg.Detached
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) up(ctx context.Context) error {
	if err := l.state.write(); err != nil { // detached or not is known from now on
		return err
	}
	l.addHosts()
	if err := l.net.up(ctx); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	var err error
	l.Services, err = nodelab.Start(ctx, nodelab.Config{
		Xylem: l.cfg.Xylem, Dir: l.state.Dir, Log: l.cfg.Log, Place: l.registry, Listen: netip.AddrPortFrom(l.registry.Addr, registryPort).String(),
	})
	if err != nil {
		return err
	}
	if l.scheduler != nil {
		if err := l.scheduler.start(ctx); err != nil {
			return fmt.Errorf("scheduler: %w", err)
		}
	}
	if err := l.startNodes(ctx); err != nil {
		return err
	}
	l.describe()
	return l.state.write()
}

func (l *Lab) addHosts() {
	l.net = &network{id: l.state.ID}
	l.registry = l.addHost(registryName, registryAddr)
	if l.cfg.Scheduler {
		l.scheduler = &controlPlane{
			host: l.addHost(schedulerName, schedulerAddr), xylem: l.cfg.Xylem, dir: filepath.Join(l.state.Dir, schedulerName), stripes: l.cfg.Stripes,
		}
	}
	for i := range l.cfg.Hosts {
		l.hosts = append(l.hosts, l.addHost(hostName(i), hostAddr(i+1)))
	}
}

func (l *Lab) addHost(name string, addr netip.Addr) *Host {
	link, ok := l.cfg.Links[name]
	if !ok {
		link = l.cfg.Link
	}
	return &Host{Name: name, Addr: addr, lab: l, port: l.net.add(name, addr, link)}
}

// startNodes starts the programs of all hosts, a few hosts at a time: they share the processors.
func (l *Lab) startNodes(ctx context.Context) error {
	if !l.cfg.Agents && !l.cfg.Containerd {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, h := range l.hosts {
		group.Go(func() (err error) {
			h.Node, err = l.Services.Node(ctx, nodelab.NodeConfig{
				Name: h.Name, Xylem: l.cfg.Agents, AgentConfig: l.scheduler.agentConfig(h) + l.cfg.AgentConfig, Place: h,
				Proxy: l.cfg.Agents, Functions: l.cfg.Functions, AgentOnly: !l.cfg.Containerd, Containerd: l.cfg.ContainerdBinary, Ctr: l.cfg.Ctr,
			})
			if err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// describe fills in what others may want to know.
func (l *Lab) describe() {
	l.state.Registry = l.Services.Host()
	for _, h := range l.all() {
		s := HostState{Name: h.Name, Address: h.Addr, Namespace: h.Namespace()}
		if h.Node != nil && l.cfg.Agents {
			s.Config = h.Node.ConfigFile()
		}
		l.state.Hosts = append(l.state.Hosts, s)
	}
}

// Down ends everything and removes it.
func (l *Lab) Down() error {
	var group errgroup.Group
	for _, h := range l.hosts {
		if h.Node != nil {
			group.Go(h.Node.Close)
		}
	}
	errs := []error{group.Wait(), l.scheduler.stop()}
	if l.Services != nil {
		errs = append(errs, l.Services.Close())
	}
	return errors.Join(append(errs, l.remove(), l.lock.Close())...)
}

// remove removes also what the caller or a killed program left, while nobody looks for labs without an owner: half removed, it would
// seem to be one. It is bounded in time by itself.
func (l *Lab) remove() error {
	unlock, err := lockParent(l.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	return remove(context.Background(), l.state.Dir)
}

// Hosts are h1 and so on, without the registry's and the scheduler's. The caller must not change the slice.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Registry is the host of the registry.
func (l *Lab) Registry() *Host { return l.registry }

// Scheduler is the host of the scheduler, nil without one.
func (l *Lab) Scheduler() *Host {
	if l.scheduler == nil {
		return nil
	}
	return l.scheduler.host
}

// KillScheduler ends the scheduler like a crash; StartScheduler starts it again on what it had on disk.
func (l *Lab) KillScheduler() error { return l.scheduler.kill() }

// StartScheduler starts the scheduler after KillScheduler.
func (l *Lab) StartScheduler(ctx context.Context) error { return l.scheduler.start(ctx) }

// State is what other processes know of the lab.
func (l *Lab) State() State { return l.state }

// Traffic returns what went over each host's link since the lab is up, by the host's name, all read at nearly the same moment.
func (l *Lab) Traffic(ctx context.Context) (map[string]Traffic, error) { return l.net.traffic(ctx) }

// Partition divides the network: hosts of a group reach each other and nobody else. A host in none of the groups reaches nobody.
// Connections stay as they are, and packets vanish.
func (l *Lab) Partition(ctx context.Context, groups ...[]*Host) error {
	seen := map[*Host]bool{}
	ports := make([][]*port, len(groups))
	for i, group := range groups {
		for _, h := range group {
			if seen[h] {
				return fmt.Errorf("%s is in two groups", h.Name)
			}
			seen[h] = true
			ports[i] = append(ports[i], h.port)
		}
	}
	return l.net.connect(ctx, ports...)
}

// Heal ends Partition and StallLink.
func (l *Lab) Heal(ctx context.Context) error { return l.net.connect(ctx, l.net.ports) }

func (l *Lab) all() []*Host {
	all := []*Host{l.registry}
	if h := l.Scheduler(); h != nil {
		all = append(all, h)
	}
	return append(all, l.hosts...)
}

// Congestion returns the TCP congestion controls that are in use in the lab, sorted: one, unless its links differ.
func (l *Lab) Congestion() ([]string, error) {
	used := map[string]bool{}
	for _, h := range l.all() {
		name, err := h.Congestion()
		if err != nil {
			return nil, err
		}
		used[name] = true
	}
	return slices.Sorted(maps.Keys(used)), nil
}
