package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/scheduler/api"
)

// checkSchedulers says whether schedulers answer, and are those of the join token, if any is configured.
func (d *doctor) checkSchedulers(ctx context.Context) []finding {
	const check = "schedulers"
	if len(d.config.Schedulers) == 0 {
		return nil
	}
	token, err := d.joinToken()
	if err != nil {
		return []finding{fail(check, "correct join_token_file ("+agentConfigFile+"); 'xylem scheduler token create' prints a token", "%v", err)}
	}
	var failed []error
	for _, s := range d.config.Schedulers {
		if err := askScheduler(ctx, s, token); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s, err))
		}
	}
	const fix = "start 'xylem scheduler' there, open its port, or correct schedulers (" + agentConfigFile + ")"
	switch all := len(d.config.Schedulers); {
	case len(failed) == all:
		return []finding{fail(check, fix, "none can be asked: %v", errors.Join(failed...))}
	case len(failed) > 0:
		return []finding{warn(check, fix, "%d of %d cannot be asked: %v", len(failed), all, errors.Join(failed...))}
	}
	return []finding{ok(check, "%s can be asked", strings.Join(d.config.Schedulers, " "))}
}

// joinToken returns the configured join token, nil if there is none, or none any more because the agent has joined.
func (d *doctor) joinToken() (*api.Token, error) {
	if d.config.JoinTokenFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(d.config.JoinTokenFile)
	if errors.Is(err, os.ErrNotExist) {
		if _, joined := os.Stat(filepath.Join(d.config.Root, "cluster", "membership.json")); joined == nil {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	token, err := api.ParseToken(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.config.JoinTokenFile, err)
	}
	return &token, nil
}

// askScheduler connects to a scheduler. Who it is can be said only if there is a join token, which pins the cluster's CA.
func askScheduler(ctx context.Context, at string, token *api.Token) error {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" || u.Port() == "" {
		return errors.New("want https://host:port")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	shown := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if err := shown[0].VerifyHostname(u.Hostname()); err != nil {
		return fmt.Errorf("add the name to names in the scheduler's configuration: %w", err)
	}
	for _, cert := range shown {
		if token == nil || api.Pin(cert) == token.Pin {
			return nil
		}
	}
	return errors.New("it is of another cluster than the join token")
}

// checkListen says whether the address for other agents is free, or the agent's already.
func (d *doctor) checkListen(ctx context.Context) []finding {
	const check = "listen"
	if len(d.config.Schedulers) == 0 {
		return nil
	}
	at := d.config.Listen
	l, err := net.Listen("tcp", at.String())
	if err == nil {
		l.Close()
	}
	pid := d.agentProcess(ctx)
	switch {
	case err == nil && pid == 0:
		return []finding{ok(check, "%s is free", at)}
	case err == nil:
		return []finding{warn(check, "restart 'xylem agent', so that it reads its configuration", "the agent runs, but not on %s", at)}
	case !errors.Is(err, syscall.EADDRINUSE):
		return []finding{fail(check, "set listen to an address of this machine ("+agentConfigFile+")", "%v", err)}
	case pid != 0 && d.listens(pid, at.Port()):
		return []finding{ok(check, "%s is the agent's", at)}
	}
	return []finding{fail(check, "stop what listens there ('ss -ltnp' names it), or set another listen ("+agentConfigFile+")", "%v", err)}
}

// agentProcess returns the ID of the process that serves the agent's admin socket, 0 if nobody does.
func (d *doctor) agentProcess(ctx context.Context) int {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", d.config.AdminSocket())
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid
}

// listens tells whether a process listens at a TCP port.
func (d *doctor) listens(pid int, port uint16) bool {
	process := d.path(fmt.Sprintf("/proc/%d", pid))
	open, err := filepath.Glob(process + "/fd/*")
	if err != nil {
		return false
	}
	listeners := append(listenersAt(process+"/net/tcp", port), listenersAt(process+"/net/tcp6", port)...)
	return slices.ContainsFunc(open, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err == nil && slices.Contains(listeners, to)
	})
}

// listenersAt returns the sockets of a table of the kernel's that listen at a port, as links in /proc/PID/fd name them.
func listenersAt(table string, port uint16) (sockets []string) {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	const local, state, inode = 1, 3, 9 // columns
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > inode && fields[state] == "0A" && strings.HasSuffix(fields[local], fmt.Sprintf(":%04X", port)) {
			sockets = append(sockets, "socket:["+fields[inode]+"]")
		}
	}
	return sockets
}
