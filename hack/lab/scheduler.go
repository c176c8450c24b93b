package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// The ports of the cluster inside a lab.
const (
	registryPort  = 5000
	schedulerPort = 9760
	peerPort      = 9752
)

// controlPlane is the lab's scheduler. This file is all that the lab knows of its command line and of how agents join.
type controlPlane struct {
	host    *Host
	xylem   string // binary
	dir     string
	stripes int              // 0: the scheduler's default
	process *nodelab.Process // or nil
}

func (c *controlPlane) url() string {
	return "https://" + netip.AddrPortFrom(c.host.Addr, schedulerPort).String()
}

func (c *controlPlane) joinToken() string { return filepath.Join(c.dir, "r", "join-token") }

// start runs `xylem scheduler` until agents can join.
func (c *controlPlane) start(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	// On all addresses, so that users on the host itself need no key.
	listen := netip.AddrPortFrom(netip.IPv4Unspecified(), schedulerPort).String()
	args := []string{"scheduler", "--root", filepath.Join(c.dir, "r"), "--state", filepath.Join(c.dir, "s"), "--listen", listen, "--advertise", c.url()}
	if c.stripes != 0 {
		args = append(args, "--stripes", strconv.Itoa(c.stripes))
	}
	var err error
	if c.process, err = c.host.Daemon("scheduler", exec.Command(c.xylem, args...)); err != nil {
		return err
	}
	return c.process.Poll(ctx, 30*time.Second, func() error {
		if _, err := os.Stat(c.joinToken()); err != nil {
			return err
		}
		conn, err := c.host.DialContext(ctx, "tcp4", netip.AddrPortFrom(c.host.Addr, schedulerPort).String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (c *controlPlane) kill() error {
	err := c.process.Kill()
	c.process = nil
	return err
}

func (c *controlPlane) stop() error {
	if c == nil || c.process == nil {
		return nil
	}
	return c.process.Stop()
}

// agentConfig is the part of a host's agent configuration that makes it a member of the cluster.
func (c *controlPlane) agentConfig(h *Host) string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf("schedulers = [%q]\njoin_token_file = %q\nlisten = %q\n", c.url(), c.joinToken(), netip.AddrPortFrom(h.Addr, peerPort))
}

// JoinToken is the file with the token that lets agents join the lab's cluster.
func (l *Lab) JoinToken() string { return l.scheduler.joinToken() }

// SchedulerURL is where agents reach the scheduler.
func (l *Lab) SchedulerURL() string { return l.scheduler.url() }

// SchedulerSocket is the scheduler's admin socket.
func (l *Lab) SchedulerSocket() string { return filepath.Join(l.scheduler.dir, "s", "scheduler.sock") }

// User returns a client of the scheduler's API of functions, which connects from the scheduler's host.
func (l *Lab) User() (*api.User, error) {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), schedulerPort)
	return api.NewUser(api.UserConfig{URL: "http://" + at.String(), Dial: l.scheduler.host.DialContext})
}
