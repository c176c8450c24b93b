package erofs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/fuse"
)

// Spec says what to mount, where and how.
type Spec struct {
	// Metadata is the path of the EROFS metadata image, on local disk.
	Metadata string
	// Devices are the paths of the image's devices in order: files in a fuse.Server's directory, or complete local files.
	Devices []string
	// Blobs are the same devices as WayTree reads them, without a detour through FUSE. Nil: WayTree opens Devices, which
	// must be complete local files then. The other ways ignore it. They stay in use until Unmount returns.
	Blobs []fuse.Blob
	// Target is an existing directory.
	Target string
	// Way to mount. Default WayFile.
	Way Way
	// ReadAhead in bytes is how far the kernel reads ahead of a sequential reader; a multiple of 4 KiB. What reads less sees
	// more precisely what a program touches. Default 512 KiB.
	ReadAhead int
	// Buffered makes WayFile and WayLoop read device files through their page cache as well. That keeps data twice, but is
	// faster where all devices are complete local files that have just been written.
	Buffered bool
	// ReadTimeout of WayTree, as in fuse.Config. Default 30 s.
	ReadTimeout time.Duration
	// Log. Default: discarded.
	Log *slog.Logger
}

func (s Spec) withDefaults() Spec {
	if s.Way == 0 {
		s.Way = WayFile
	}
	if s.ReadAhead <= 0 {
		s.ReadAhead = 512 << 10
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Mounted is a mounted tree.
type Mounted struct {
	way       Way
	target    string
	readAhead func(bytes int) error // set once, while mounting

	mu    sync.Mutex
	undos []func(context.Context) error // guarded by mu; run from the last to the first, each dropped when it succeeded
}

// Mount mounts spec.Metadata over its devices on spec.Target.
//
// ErrUnsupported: this kernel cannot do it this way (Detect says which it can). ErrCorrupt: WayTree cannot read the image.
// The kernel says no more than "invalid argument" about a damaged image.
func Mount(ctx context.Context, spec Spec) (*Mounted, error) {
	spec = spec.withDefaults()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var err, errTarget error
	spec.Metadata, err = filepath.Abs(spec.Metadata)
	spec.Target, errTarget = fuse.MountPath(spec.Target)
	if err := errors.Join(err, errTarget); err != nil {
		return nil, err
	}
	m := &Mounted{way: spec.Way, target: spec.Target}
	switch spec.Way {
	case WayFile:
		err = m.mountFile(spec)
	case WayLoop:
		err = m.mountLoop(spec)
	case WayTree:
		err = m.mountTree(spec)
	default:
		err = fmt.Errorf("%v: %w", spec.Way, blockfmt.ErrUnsupported)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s on %s as %v: %w", spec.Metadata, spec.Target, spec.Way, err), m.Unmount(context.WithoutCancel(ctx)))
	}
	return m, nil
}

// Way returns how the tree is mounted.
func (m *Mounted) Way() Way { return m.way }

// SetReadAhead changes Spec.ReadAhead, a number of bytes, for files that are opened from now on.
func (m *Mounted) SetReadAhead(bytes int) error { return m.readAhead(bytes) }

// Target returns the absolute path of the directory with the tree.
func (m *Mounted) Target() string { return m.target }

// Unmount takes the mount and everything below it away, in this order; lazily, with a line in the log, if files are open.
// Devices may be closed when it returns nil, unless that line was written. After an error it can be called again and goes on
// where it failed; after success it does nothing.
func (m *Mounted) Unmount(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.undos) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unmount %s: %w", m.target, err)
		}
		last := len(m.undos) - 1
		if err := m.undos[last](ctx); err != nil {
			return fmt.Errorf("unmount %s: %w", m.target, err)
		}
		m.undos = m.undos[:last]
	}
	return nil
}

// undo adds what Unmount has to do first from now on.
func (m *Mounted) undo(f func(context.Context) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.undos = append(m.undos, f)
}

func (m *Mounted) mountFile(spec Spec) error {
	if err := syncFile(spec.Metadata); err != nil {
		return err
	}
	return m.attach(spec, spec.Metadata, spec.Devices)
}

// attach mounts EROFS and remembers how to take it away.
func (m *Mounted) attach(spec Spec, source string, devices []string) error {
	found, err := mountKernel(spec, source, devices)
	if err != nil {
		return err
	}
	m.readAhead = found.setReadAhead
	m.undo(func(context.Context) error { return unmount(spec.Target, spec.Log) })
	return nil
}

// Clear takes away whatever is mounted on target, lazily where it is busy: what a process that died has left there. It does
// not touch target itself, which may hang or fail if that process served it.
func Clear(target string, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	target, err := fuse.MountPath(target)
	if err != nil {
		return err
	}
	for range maxStacked {
		mounted, err := fuse.IsMountPoint(target)
		if err != nil || !mounted {
			return err
		}
		if err := unmount(target, log); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmount %s: there is always another mount below", target)
}

// maxStacked bounds how many mounts on top of each other Clear takes away.
const maxStacked = 100

// unmount unmounts target, lazily if it is busy. A target that is not a mount is fine.
func unmount(target string, log *slog.Logger) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		log.Warn("tree still in use, unmounting lazily", "target", target)
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return err
}

// syncFile writes the file's data to disk: EROFS reads below the page cache that may still hold it.
func syncFile(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("fsync %s: %w", path, err)
	}
	return nil
}
