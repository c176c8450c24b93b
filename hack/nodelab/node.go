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
	// Xylem runs an agent, containerd's snapshotter "xylem". Without it, the node has containerd's own only.
	Xylem bool
	// AgentConfig is added to the agent's configuration file, TOML.
	AgentConfig string
	// Containerd and Ctr are the binaries. Default: Debian's, from PATH.
	Containerd, Ctr string
	// CRI serves pods, with PauseImage for their sandboxes.
	CRI        bool
	PauseImage string
}

// Node is a containerd of its own with an empty store and, if wanted, an agent with an empty cache.
type Node struct {
	Containerd *containerdtest.Daemon

	lab   *Lab
	dir   string
	agent *process // or nil
}

// Node starts one. The caller closes it before the lab.
func (l *Lab) Node(ctx context.Context, cfg NodeConfig) (_ *Node, err error) {
	l.nodes++
	n := &Node{lab: l, dir: l.Path(fmt.Sprintf("n%d", l.nodes))}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := os.Mkdir(n.dir, 0o711); err != nil {
		return nil, err
	}
	opts := containerdtest.Options{
		Dir: filepath.Join(n.dir, "c"), Registries: []string{l.Host()}, Binary: cfg.Containerd, Ctr: cfg.Ctr, CRI: cfg.CRI, PauseImage: cfg.PauseImage,
	}
	if cfg.Xylem {
		if err := n.startAgent(ctx, cfg.AgentConfig); err != nil {
			return nil, err
		}
		opts.Snapshotter = filepath.Join(n.State(), "agent.sock")
	}
	if n.Containerd, err = containerdtest.Start(ctx, opts); err != nil {
		return nil, err
	}
	return n, nil
}

// Root and State are the agent's directories.
func (n *Node) Root() string  { return filepath.Join(n.dir, "r") }
func (n *Node) State() string { return filepath.Join(n.dir, "s") }

func (n *Node) configFile() string { return filepath.Join(n.dir, "agent.toml") }

// startAgent runs `xylem agent` until its snapshotter answers.
func (n *Node) startAgent(ctx context.Context, extra string) error {
	config := fmt.Sprintf("root = %q\nstate = %q\nadmin = \"\"\ntrusted_keys = [%q]\n%s\n", n.Root(), n.State(), n.lab.publicKey(), extra)
	if err := os.WriteFile(n.configFile(), []byte(config), 0o600); err != nil {
		return err
	}
	var err error
	n.agent, err = startProcess(n.AgentLog(), exec.Command(n.lab.xylem, "--config", n.configFile(), "agent"))
	if err != nil {
		return err
	}
	return n.agent.poll(ctx, 20*time.Second, func() error {
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
		errs = append(errs, n.agent.stop())
	}
	return errors.Join(append(errs, containerdtest.UnmountBelow(n.dir), os.RemoveAll(n.dir))...)
}

// Xylem runs the xylem command on the node and returns its stdout.
func (n *Node) Xylem(ctx context.Context, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, n.lab.xylem, append([]string{"--config", n.configFile(), "--log-level", "warn"}, args...)...))
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
	_, err := output(n.command(ctx, "pull", snapshotter, ref))
	return n.explain(err)
}

// Run starts a container of ref with `xylem run`, pulling the image first if it is not on the node, and returns the time
// from the command's start to the first line that the container's program prints, once the program has ended. The
// command is the same for every snapshotter, so what differs is the snapshotter.
func (n *Node) Run(ctx context.Context, snapshotter, ref string, args ...string) (time.Duration, string, error) {
	took, line, err := firstLine(n.command(ctx, "run", snapshotter, ref, args...))
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

// firstLine runs a command to its end and returns when its first line came, after its start, and the line.
func firstLine(cmd *exec.Cmd) (took time.Duration, line string, err error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, "", err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
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
