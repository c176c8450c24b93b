package nodelab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xylem-project/xylem/hack/containerdtest"
)

// NodeConfig of a Node.
type NodeConfig struct {
	// Name of its directory in the lab's, short. Default: n1 and so on.
	Name string
	// Xylem runs an agent, containerd's snapshotter "xylem". Without it, the node has containerd's own only.
	Xylem bool
	// AgentConfig is added to the agent's configuration file, TOML.
	AgentConfig string
	// Containerd and Ctr are the binaries. Default: Debian's, from PATH.
	Containerd, Ctr string
	// Place is where all of that runs. Default: this machine.
	Place Place
	// AgentOnly runs no containerd.
	AgentOnly bool
	// Proxy runs the agent's registry proxy in front of the lab's registry, at ProxyAddress of a Place with a network of its own.
	Proxy bool
	// Functions lets the agent run functions, for the schedulers that AgentConfig names.
	Functions bool
	// CRI serves pods, with PauseImage for their sandboxes.
	CRI        bool
	PauseImage string
}

// ProxyAddress is where the registry proxy of a node listens that has one.
const ProxyAddress = "127.0.0.1:9751"

// Node is a containerd of its own with an empty store and, if wanted, an agent with an empty cache.
type Node struct {
	Containerd *containerdtest.Daemon // nil with AgentOnly, and while the node is down

	lab   *Lab
	cfg   NodeConfig
	dir   string
	agent *Process // or nil
}

// Node starts one. The caller closes it before the lab.
func (l *Lab) Node(ctx context.Context, cfg NodeConfig) (_ *Node, err error) {
	if cfg.Place == nil {
		cfg.Place = here{}
	}
	if cfg.Name == "" {
		cfg.Name = fmt.Sprintf("n%d", l.nodes.Add(1))
	}
	n := &Node{lab: l, cfg: cfg, dir: l.Path(cfg.Name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := os.Mkdir(n.dir, 0o711); err != nil {
		return nil, err
	}
	if err := n.Boot(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// containerdDir is containerd's directory in the node's.
const containerdDir = "c"

// Boot starts the node's daemons on what they left in their directories: after Down, or after KillAgent.
func (n *Node) Boot(ctx context.Context) (err error) {
	opts := containerdtest.Options{
		Dir: filepath.Join(n.dir, containerdDir), Registries: []string{n.lab.Host()}, Binary: n.cfg.Containerd, Ctr: n.cfg.Ctr,
		CRI: n.cfg.CRI, PauseImage: n.cfg.PauseImage, Start: n.cfg.Place.Start,
	}
	if n.cfg.Xylem {
		opts.Snapshotter = filepath.Join(n.State(), "agent.sock")
		if n.agent == nil {
			if err := n.startAgent(ctx); err != nil {
				return err
			}
		}
	}
	if n.cfg.AgentOnly || n.Containerd != nil {
		return nil
	}
	n.Containerd, err = containerdtest.Start(ctx, opts)
	return err
}

// KillAgent ends the agent like a crash, by SIGKILL. What it started lives on.
func (n *Node) KillAgent() error {
	err := n.agent.Kill()
	n.agent = nil
	return err
}

// Down takes note that everything on the node was killed, as when its power fails: it waits for the daemons and removes the mounts.
func (n *Node) Down(ctx context.Context) error {
	var errs []error
	if n.agent != nil {
		errs = append(errs, n.agent.Wait(ctx))
		n.agent = nil
	}
	if n.Containerd != nil {
		errs = append(errs, n.Containerd.Stop())
		n.Containerd = nil
	}
	return errors.Join(append(errs, containerdtest.UnmountBelow(n.dir))...)
}

// Root and State are the agent's directories.
func (n *Node) Root() string  { return filepath.Join(n.dir, "r") }
func (n *Node) State() string { return filepath.Join(n.dir, "s") }

// ConfigFile is the agent's configuration, which commands of xylem for this node read too.
func (n *Node) ConfigFile() string { return filepath.Join(n.dir, "agent.toml") }

// startAgent runs `xylem agent` until its snapshotter answers.
func (n *Node) startAgent(ctx context.Context) error {
	proxy := `proxy.listen = ""`
	if n.cfg.Proxy {
		proxy = fmt.Sprintf("proxy.listen = %q\nproxy.default_upstream = %q", ProxyAddress, n.lab.Host())
	}
	if n.cfg.Functions {
		proxy += fmt.Sprintf("\nfunctions.enabled = true\nfunctions.containerd = %q", containerdtest.Socket(filepath.Join(n.dir, containerdDir)))
	}
	config := fmt.Sprintf("root = %q\nstate = %q\nadmin = \"\"\n%s\ntrusted_keys = [%q]\n%s\n%s", n.Root(), n.State(), proxy, n.lab.publicKey(),
		n.cfg.AgentConfig, n.lab.registryConfig())
	if err := os.WriteFile(n.ConfigFile(), []byte(config), 0o600); err != nil {
		return err
	}
	var err error
	n.agent, err = StartProcess(n.cfg.Place, n.AgentLog(), exec.Command(n.lab.xylem, "--config", n.ConfigFile(), "agent"))
	if err != nil {
		return err
	}
	return n.agent.Poll(ctx, 20*time.Second, func() error {
		_, err := n.Metrics(ctx)
		return err
	})
}

// AgentLog is the file of the agent's log.
func (n *Node) AgentLog() string { return filepath.Join(n.dir, "agent.log") }

// Close ends the node's containers and daemons and removes its directory.
func (n *Node) Close() error {
	var errs []error
	if n.Containerd != nil {
		errs = append(errs, n.Containerd.Stop())
	}
	if n.agent != nil {
		errs = append(errs, n.agent.Stop())
	}
	return errors.Join(append(errs, containerdtest.UnmountBelow(n.dir), os.RemoveAll(n.dir))...)
}

// Xylem runs the xylem command on the node and returns its stdout.
func (n *Node) Xylem(ctx context.Context, args ...string) (string, error) {
	return output(n.cfg.Place, exec.CommandContext(ctx, n.lab.xylem, append([]string{"--config", n.ConfigFile(), "--log-level", "warn"}, args...)...))
}

// AgentLogTail returns the end of the agent's log, for error messages.
func (n *Node) AgentLogTail() string { return tail(n.AgentLog()) }

// command of xylem that goes through the node's containerd.
func (n *Node) command(ctx context.Context, name, snapshotter, ref string, args ...string) *exec.Cmd {
	args = append([]string{"--root", n.Root(), "--state", n.State(), "--log-level", "warn", name, "--address", n.Containerd.Address,
		"--hosts-dir", n.Containerd.HostsDir(), "--snapshotter", snapshotter, ref}, args...)
	return exec.CommandContext(ctx, n.lab.xylem, args...)
}

// Pull pulls an image with `xylem pull`.
func (n *Node) Pull(ctx context.Context, snapshotter, ref string) error {
	_, err := output(n.cfg.Place, n.command(ctx, "pull", snapshotter, ref))
	return n.explain(err)
}

// Run starts a container of ref with `xylem run`, pulling the image first if it is not on the node, and returns the time
// from the command's start to the first line that the container's program prints, once the program has ended. The
// command is the same for every snapshotter, so what differs is the snapshotter.
func (n *Node) Run(ctx context.Context, snapshotter, ref string, args ...string) (time.Duration, string, error) {
	took, line, err := firstLine(n.cfg.Place, n.command(ctx, "run", snapshotter, ref, args...))
	return took, line, n.explain(err)
}

// explain adds what the agent said to an error.
func (n *Node) explain(err error) error {
	if err == nil || n.agent == nil {
		return err
	}
	return fmt.Errorf("%w\nthe agent's log ends with:\n%s", err, n.AgentLogTail())
}

// Cold is Run with nothing of the image on the machine and no file in the page cache.
func (n *Node) Cold(ctx context.Context, snapshotter, ref string) (time.Duration, error) {
	if err := DropCaches(); err != nil {
		return 0, err
	}
	took, _, err := n.Run(ctx, snapshotter, ref)
	return took, err
}

// firstLine runs a command at a place to its end and returns when its first line came, after its start, and the line.
func firstLine(place Place, cmd *exec.Cmd) (took time.Duration, line string, err error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, "", err
	}
	begin := time.Now()
	if err := place.Start(cmd); err != nil {
		return 0, "", err
	}
	r := bufio.NewReader(out)
	line, readErr := r.ReadString('\n')
	took = time.Since(begin)
	_, copyErr := io.Copy(io.Discard, r)
	if err := errors.Join(readErr, copyErr, cmd.Wait()); err != nil {
		return 0, "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return took, strings.TrimSpace(line), nil
}
