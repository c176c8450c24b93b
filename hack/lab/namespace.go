package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaceDir is where ip(8) keeps the names of network namespaces.
const namespaceDir = "/run/netns"

// namespace is the name of a network namespace. Only the network is another one: files, mounts and processes are this machine's.
type namespace string

func (n namespace) path() string { return filepath.Join(namespaceDir, string(n)) }

// do calls f on a thread that is in the namespace. What f starts on other threads is not.
func (n namespace) do(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := n.enter(f)
		if !errors.Is(err, errAway) {
			runtime.UnlockOSThread()
		} // else the thread ends with the goroutine
		result <- err
	}()
	return <-result
}

var errAway = errors.New("cannot leave the namespace")

func (n namespace) enter(f func() error) error {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	away, err := os.Open(n.path())
	if err != nil {
		return err
	}
	defer away.Close()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", n, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("%w %s: %w", errAway, n, back))
	}
	return err
}

// start starts a command in the namespace.
func (n namespace) start(cmd *exec.Cmd) error { return n.do(cmd.Start) }

// dial connects from the namespace. The address must be a literal one: names are resolved on other threads.
func (n namespace) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (n namespace) listen(address string) (l net.Listener, err error) {
	err = n.do(func() error {
		l, err = net.Listen("tcp4", address)
		return err
	})
	return l, err
}

// tune sets the namespace's kernel parameters: TCP starts every connection without what it knows of earlier ones, so that
// measurements in turn do not depend on their order; and IPv6, which nobody uses here, sends nothing by itself.
func (n namespace) tune() error {
	return n.do(func() error {
		for _, name := range []string{"all", "default"} {
			err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), []byte("1"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without it
				return err
			}
		}
		return os.WriteFile("/proc/sys/net/ipv4/tcp_no_metrics_save", []byte("1"), 0)
	})
}

// batch runs commands of ip or tc, one a line, inside the namespace.
func (n namespace) batch(ctx context.Context, program, commands string) error {
	_, err := iproute(ctx, program, commands, "-n", string(n), "-batch", "-")
	return err
}

// iproute runs ip or tc and returns what it prints.
func iproute(ctx context.Context, program, stdin string, args ...string) ([]byte, error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.ReplaceAll(strings.TrimSpace(stderr.String()), "\n", "; "))
	}
	return out, nil
}
