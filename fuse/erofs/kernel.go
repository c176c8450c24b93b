package erofs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxParameter is the length in bytes that fsconfig(2) accepts for a string.
const maxParameter = 255

// mountKernel mounts EROFS by the mount API of Linux 5.2. mount(2) takes one page of options, too little for a hundred
// devices, and mount(8) puts loop devices between.
func mountKernel(spec Spec, source string, devices []string) (bdis, error) {
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen erofs: %w", withKind(err))
	}
	defer unix.Close(fsfd)
	if err := configure(fsfd, spec, source, devices); err != nil {
		return nil, err
	}
	mfd, readAhead, err := create(fsfd, spec)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, spec.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("move mount: %w", err)
	}
	return readAhead, nil
}

// create makes the configured file system and returns a mount of it that is not attached anywhere yet, and where its readahead
// is set.
func create(fsfd int, spec Spec) (int, bdis, error) {
	watch, err := watchBDI()
	if err != nil {
		return -1, nil, err
	}
	defer watch.close()
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, nil, kernelError(fsfd, "create erofs", err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return -1, nil, kernelError(fsfd, "fsmount erofs", err)
	}
	found, err := watch.of(mfd)
	if err == nil {
		err = found.setReadAhead(spec.ReadAhead)
	}
	if err != nil {
		spec.Log.Warn("readahead stays at the kernel's default", "target", spec.Target, "err", err)
	}
	return mfd, found, nil
}

func configure(fsfd int, spec Spec, source string, devices []string) error {
	if err := unix.FsconfigSetFlag(fsfd, "ro"); err != nil { // else read-only block devices are opened for writing
		return kernelError(fsfd, "ro", err)
	}
	if err := setString(fsfd, "source", source); err != nil {
		return err
	}
	for _, device := range devices {
		if err := setString(fsfd, "device", device); err != nil {
			return err
		}
	}
	if spec.Buffered || spec.Way == WayLoop { // a loop device has its own flag
		return nil
	}
	if err := unix.FsconfigSetFlag(fsfd, "directio"); err != nil {
		spec.Log.Info("EROFS of this kernel has no directio, data is cached twice", "err", kernelError(fsfd, "directio", err))
	}
	return nil
}

func setString(fsfd int, key, value string) error {
	if len(value) > maxParameter {
		return fmt.Errorf("path %s=%s is longer than the %d bytes that the kernel takes: %w", key, value, maxParameter, blockfmt.ErrUnsupported)
	}
	if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
		return kernelError(fsfd, key+"="+value, err)
	}
	return nil
}

// kernelError adds what the kernel wrote about a mount context to err.
func kernelError(fsfd int, doing string, err error) error {
	if log := contextLog(fsfd); log != "" {
		return fmt.Errorf("%s: kernel says %q: %w", doing, log, withKind(err))
	}
	return fmt.Errorf("%s: %w", doing, withKind(err))
}

// contextLog reads the messages of a mount context, one a read, each as "<severity> <text>".
func contextLog(fsfd int) string {
	var lines []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fsfd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return strings.Join(lines, "; ")
		}
		line := strings.TrimSpace(string(buf[:n]))
		if _, text, ok := strings.Cut(line, " "); ok {
			line = text
		}
		lines = append(lines, line)
	}
}

// withKind wraps what a system call returned in the blockfmt kind that it means; most are local faults and have none.
func withKind(err error) error {
	switch err {
	case unix.ENODEV, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOTBLK:
		return fmt.Errorf("%w: %w", err, blockfmt.ErrUnsupported)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("%w: %w", err, blockfmt.ErrDenied)
	case unix.ENOENT:
		return fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	return err
}
