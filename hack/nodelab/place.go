package nodelab

import (
	"context"
	"net"
	"os/exec"
)

// Place is where programs run and connect: this machine, or a network namespace of it. The file system is the same everywhere.
type Place interface {
	// Start is (*exec.Cmd).Start.
	Start(cmd *exec.Cmd) error
	// DialContext is (*net.Dialer).DialContext.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// here is this machine.
type here struct{}

func (here) Start(cmd *exec.Cmd) error { return cmd.Start() }

func (here) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}
