package fuse

import (
	"bytes"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fsType is what mounts of ours are called in /proc/self/mountinfo, after "fuse.".
const fsType = "xylem"

// Conn is one FUSE mount and the goroutines that answer its requests.
type Conn struct {
	dir    string
	log    *slog.Logger
	init   []byte        // the kernel's INIT request as received: a server that takes the mount over is fed it again
	served chan struct{} // closed when the last request has been answered
}

// Traits say how a file system differs from the defaults of a Conn.
type Traits struct {
	Xattrs bool // has extended attributes; otherwise the kernel is told to stop asking
	Plus   bool // implements ReadDirPlus
	Exec   bool // is a container's root: programs, setuid and devices work as the tree says, everybody may look
}

// Attach mounts fs on dir, an existing directory, and serves it until Close. Needs root and /dev/fuse.
//
// It mounts by itself, not through go-fuse: the descriptor must be close-on-exec, or a child that inherits it keeps a dead
// server's readers waiting, and the INIT request must be kept.
func Attach(dir string, fs gofuse.RawFileSystem, traits Traits, cfg Config) (*Conn, error) {
	cfg = cfg.withDefaults()
	dir, err := MountPath(dir)
	if err != nil {
		return nil, err
	}
	if err := clearDead(dir, cfg.Log); err != nil {
		return nil, err
	}
	fd, err := mountFUSE(dir, traits, cfg)
	if err != nil {
		return nil, err
	}
	c := &Conn{dir: dir, log: cfg.Log, served: make(chan struct{})}
	server, err := c.start(fd, fs, traits, cfg)
	if err != nil {
		unmountErr := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		return nil, fmt.Errorf("serve FUSE on %s: %w (unmounted: %v)", dir, err, unmountErr == nil)
	}
	go func() { // ends when Close has cut the connection, and is waited for there
		server.Serve()
		close(c.served)
	}()
	// The kernel reads ahead 128 KiB otherwise, when somebody reads through the page cache of the files.
	if err := c.SetReadAhead(cfg.MaxRequest); err != nil {
		cfg.Log.Warn("readahead of FUSE mount stays at the kernel's default", "dir", dir, "err", err)
	}
	return c, nil
}

// SetReadAhead sets how far, in bytes, the kernel reads ahead through the page cache of the files.
func (c *Conn) SetReadAhead(bytes int) error {
	dev, _, err := mountAt(c.dir)
	if err != nil {
		return err
	}
	return os.WriteFile("/sys/class/bdi/"+dev+"/read_ahead_kb", []byte(strconv.Itoa(bytes>>10)), 0)
}

// mountFUSE returns the descriptor of a fresh connection, mounted on dir.
func mountFUSE(dir string, traits Traits, cfg Config) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOATIME | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, cfg.MaxRequest)
	if traits.Exec {
		flags = unix.MS_RDONLY | unix.MS_NOATIME
		options += ",allow_other,default_permissions"
	}
	if err := unix.Mount(fsType, dir, "fuse."+fsType, flags, options); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount FUSE on %s: %w", dir, err)
	}
	return fd, nil
}

// start takes the INIT request off fd, keeps it, and makes a go-fuse server for the connection. It owns fd.
func (c *Conn) start(fd int, fs gofuse.RawFileSystem, traits Traits, cfg Config) (*gofuse.Server, error) {
	defer unix.Close(fd)
	buf := make([]byte, 64<<10) // INIT has about 100 bytes; the kernel refuses to write into less than 8 KiB
	n, err := readRetry(fd, buf)
	if err != nil {
		return nil, fmt.Errorf("read INIT: %w", err)
	}
	c.init = bytes.Clone(buf[:n])
	server, reply, err := serverOn(fd, c.init, fs, traits, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Write(fd, reply); err != nil {
		return nil, fmt.Errorf("answer INIT: %w", err)
	}
	return server, nil
}

// serverOn makes a go-fuse server that answers the INIT request init and then serves the connection fd, which it duplicates.
// go-fuse reads INIT from the descriptor it is given, so it is given a socket that holds just that, and the socket's
// number is then pointed at the connection. The reply is returned, not sent.
func serverOn(fd int, init []byte, fs gofuse.RawFileSystem, traits Traits, cfg Config) (*gofuse.Server, []byte, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for INIT: %w", err)
	}
	defer unix.Close(pair[0])
	if _, err := unix.Write(pair[0], init); err != nil {
		unix.Close(pair[1])
		return nil, nil, fmt.Errorf("hand over INIT: %w", err)
	}
	server, err := gofuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", pair[1]), mountOptions(traits, cfg)) // owns pair[1]
	if err != nil {
		return nil, nil, err
	}
	reply := make([]byte, 4<<10)
	n, err := readRetry(pair[0], reply)
	if err != nil {
		return nil, nil, fmt.Errorf("read reply to INIT: %w", err)
	}
	if err := unix.Dup3(fd, pair[1], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("swap descriptor: %w", err)
	}
	return server, reply[:n], nil
}

func mountOptions(traits Traits, cfg Config) *gofuse.MountOptions {
	return &gofuse.MountOptions{
		Name:                     fsType,
		MaxWrite:                 cfg.MaxRequest,
		MaxReadAhead:             cfg.MaxRequest,
		MaxBackground:            cfg.MaxBackground,
		CongestionThreshold:      cfg.MaxBackground,
		DisableXAttrs:            !traits.Xattrs,
		EnableAcl:                traits.Xattrs,
		DisableReadDirPlus:       !traits.Plus,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true, // no file ever changes
		Logger:                   log.New(logWriter{cfg.Log}, "", 0),
		PanicHandler: func(v any) gofuse.Status {
			cfg.Log.Error("panic while answering a FUSE request, reader gets EIO", "panic", v, "stack", string(debug.Stack()))
			return gofuse.EIO
		},
		// ASYNC_DIO: EROFS asks for several ranges at once. HAS_RESEND: a server that takes over gets what was under way.
		ExtraCapabilities: gofuse.CAP_ASYNC_DIO | gofuse.CAP_HAS_RESEND | gofuse.CAP_NO_OPENDIR_SUPPORT,
		// PASSTHROUGH raises the stacking depth, and EROFS refuses to be mounted over a file of a stacked file system.
		DisabledCapabilities: gofuse.CAP_PASSTHROUGH,
	}
}

// logWriter takes go-fuse's own lines. They are about replies to requests that are gone (a killed reader, an unmount).
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("go-fuse: " + string(bytes.TrimSpace(p)))
	return len(p), nil
}

func readRetry(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// closeTimeout bounds how long Close waits for the serving goroutines after the connection is cut.
const closeTimeout = 10 * time.Second

// Close cuts the connection, so that whoever still reads gets an error at once, unmounts (lazily, with a line in the log,
// if files are still open) and waits until everything under way has been answered. Unmount what uses the files first.
func (c *Conn) Close() error {
	err := unix.Unmount(c.dir, unix.MNT_FORCE) // aborts the connection even if it then finds the mount busy
	if err == unix.EBUSY {
		c.log.Warn("FUSE mount still in use, unmounting lazily", "dir", c.dir)
		err = unix.Unmount(c.dir, unix.MNT_DETACH)
	}
	if err == unix.EINVAL || err == unix.ENOENT {
		err = nil // unmounted by somebody else
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", c.dir, err)
	}
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-c.served:
		return nil
	case <-timer.C:
		return fmt.Errorf("unmount %s: still served after %v, another mount namespace may hold it: %w", c.dir, closeTimeout, os.ErrDeadlineExceeded)
	}
}
