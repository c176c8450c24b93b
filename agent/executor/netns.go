package executor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A netns is a network namespace with a loopback device, kept by a bind mount of its file.
type netns struct {
	path string
	// api listens on runtimeAddress inside, for the contract that needs it.
	api net.Listener
}

// runtimeAddress is where programs of the contract "lambda" find the Runtime API.
const runtimeAddress = "127.0.0.1:9001"

const ownNetns = "/proc/thread-self/ns/net"

// onThread runs f on an OS thread that no other goroutine runs on meanwhile, and that is back in its network namespace afterwards. A
// thread that cannot get back dies. The others live on, because the kernel may end the children that a thread has started when it dies.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ownNetns)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// newNetns makes a namespace and binds it to a file at path.
func newNetns(path string) (*netns, error) {
	ns := &netns{path: path}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("loopback device: %w", err)
		}
		if ns.api, err = net.Listen("tcp4", runtimeAddress); err != nil {
			return err
		}
		return bindNetns(path)
	})
	if err != nil {
		return nil, errors.Join(err, ns.remove())
	}
	return ns, nil
}

func bindNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ownNetns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("keep network namespace at %s: %w", path, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// dial connects to a TCP port of the namespace's loopback device. The socket belongs to the namespace, whichever thread uses it.
func (ns *netns) dial(ctx context.Context, port int) (conn net.Conn, err error) {
	file, err := os.Open(ns.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	err = onThread(func() (err error) {
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.path, err)
		}
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		return err
	})
	return conn, err
}

// remove lets go of the namespace, which ends with its last process and socket.
func (ns *netns) remove() error {
	var err error
	if ns.api != nil {
		if err = ns.api.Close(); errors.Is(err, net.ErrClosed) {
			err = nil
		}
	}
	return errors.Join(err, unmountNetns(ns.path))
}

func unmountNetns(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not mounted
		err = nil
	}
	if e := os.Remove(path); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// spares makes network namespaces ahead of the starts that need them: it takes milliseconds.
type spares struct {
	dir   string
	ready chan *netns
	made  atomic.Int64
}

func newSpares(dir string, n int) *spares { return &spares{dir: dir, ready: make(chan *netns, n)} }

func (s *spares) make() (*netns, error) {
	return newNetns(filepath.Join(s.dir, strconv.FormatInt(s.made.Add(1), 10)))
}

// fill keeps n namespaces ready until ctx ends. Starts try by themselves when it fails, so it only says so.
func (s *spares) fill(ctx context.Context, log *slog.Logger) {
	for ctx.Err() == nil {
		ns, err := s.make()
		if err != nil {
			log.Error("cannot prepare a network namespace", "err", err)
			wait(ctx, spareRetry)
			continue
		}
		select {
		case s.ready <- ns:
		case <-ctx.Done():
			if err := ns.remove(); err != nil {
				log.Error("cannot remove a network namespace", "err", err)
			}
		}
	}
}

// spareRetry is the time between tries to make a namespace.
const spareRetry = time.Second

// wait returns when d has passed or ctx has ended.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// empty removes what is ready. Nobody may fill any more.
func (s *spares) empty() error {
	var errs []error
	for {
		select {
		case ns := <-s.ready:
			errs = append(errs, ns.remove())
		default:
			return errors.Join(errs...)
		}
	}
}

// take returns a namespace, which the caller removes.
func (s *spares) take() (*netns, error) {
	select {
	case ns := <-s.ready:
		return ns, nil
	default:
		return s.make()
	}
}
