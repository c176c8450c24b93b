package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"

	"github.com/xylem-project/xylem/hack/nodelab"
)

// Host is one machine of a lab. It is also a nodelab.Place: programs that are started there have its network and nothing else of it.
type Host struct {
	Name string     // "h1" and so on, "registry" or "scheduler"
	Addr netip.Addr // in the lab
	// Node has the host's agent and containerd; nil if the lab runs neither.
	Node *nodelab.Node

	lab  *Lab
	port *port
}

// Namespace is the name of the host's network namespace, for `ip netns exec`.
func (h *Host) Namespace() string { return string(h.port.namespace()) }

// Start starts a command on the host, like (*exec.Cmd).Start. It ends with the lab, at the latest.
func (h *Host) Start(cmd *exec.Cmd) error {
	if h.lab.cfg.Detached && cmd.SysProcAttr != nil {
		cmd.SysProcAttr.Pdeathsig = 0
	}
	return h.port.namespace().start(cmd)
}

// Run runs a command on the host to its end, like (*exec.Cmd).Run.
func (h *Host) Run(cmd *exec.Cmd) error {
	if err := h.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Daemon starts a program on the host that goes on until the caller ends it or the lab ends; its output goes to the file
// <name>.log in the lab's directory.
func (h *Host) Daemon(name string, cmd *exec.Cmd) (*nodelab.Process, error) {
	return nodelab.StartProcess(h, filepath.Join(h.lab.state.Dir, h.Name+"-"+name+".log"), cmd)
}

// DialContext connects from the host to an address of the lab, host:port with a literal address.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return h.port.namespace().dial(ctx, network, address)
}

// Listen serves TCP on the host.
func (h *Host) Listen(address string) (net.Listener, error) {
	return h.port.namespace().listen(address)
}

// Traffic returns what went over the host's link since the lab is up.
func (h *Host) Traffic(ctx context.Context) (Traffic, error) {
	all, err := h.lab.Traffic(ctx)
	return all[h.Name], err
}

// Shape changes the rates and the queue of the host's link while it is in use; what waits in it is lost.
func (h *Host) Shape(ctx context.Context, link Link) error { return h.port.shape(ctx, link) }

// Link is how the host is connected.
func (h *Host) Link() Link { return h.port.link }

// Congestion returns the host's TCP congestion control, which belongs beside every figure that depends on it.
func (h *Host) Congestion() (string, error) { return h.port.namespace().congestion() }

// StallLink lets everything that is sent to and from the host vanish, while the link seems to be up. Lab.Heal ends it.
func (h *Host) StallLink(ctx context.Context) error { return h.port.cut(ctx) }

// Kill ends everything on the host at once, like a power failure. The files stay for Restart.
func (h *Host) Kill(ctx context.Context) error {
	if err := kill(ctx, []namespace{h.port.namespace()}); err != nil {
		return err
	}
	if h.Node == nil {
		return nil
	}
	return h.Node.Down(ctx)
}

// Restart starts the agent and containerd of a killed host again, with what they had on disk.
func (h *Host) Restart(ctx context.Context) error {
	if h.Node == nil {
		return errors.New(h.Name + " has neither an agent nor containerd")
	}
	return h.Node.Boot(ctx)
}

var _ nodelab.Place = (*Host)(nil)
