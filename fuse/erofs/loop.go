package erofs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
)

// mountLoop mounts EROFS over loop devices. They free themselves when the last user is gone, which is this function
// until the mount exists, and the mount after that.
func (m *Mounted) mountLoop(spec Spec) error {
	if err := syncFile(spec.Metadata); err != nil {
		return err
	}
	var paths []string
	for _, backing := range append([]string{spec.Metadata}, spec.Devices...) {
		fd, path, err := openLoop(backing, !spec.Buffered)
		if err != nil {
			return fmt.Errorf("loop device for %s: %w", backing, err)
		}
		defer unix.Close(fd)
		paths = append(paths, path)
	}
	return m.attach(spec, paths[0], paths[1:])
}

// loopAttempts bounds the tries to get a free loop device before somebody else takes it.
const loopAttempts = 100

// sector is the unit in bytes of a loop device's size.
const sector = 512

// openLoop makes a read-only loop device over backing and returns a descriptor that keeps it.
func openLoop(backing string, direct bool) (fd int, path string, err error) {
	// Not os.Open, which makes the runtime poll the file: see package fuse.
	file, err := unix.Open(backing, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open: %w", withKind(err))
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return -1, "", fmt.Errorf("fstat: %w", err)
	}
	if st.Size%sector != 0 { // the device would end before the file
		return -1, "", fmt.Errorf("%d bytes are not a multiple of %d: %w", st.Size, sector, blockfmt.ErrUnsupported)
	}
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open /dev/loop-control: %w", withKind(err))
	}
	defer unix.Close(control)
	for range loopAttempts {
		if fd, path, err = takeLoop(control, file, direct); err != unix.EBUSY {
			break
		}
	}
	if err != nil {
		return -1, "", fmt.Errorf("configure %s: %w", path, withKind(err))
	}
	return fd, path, nil
}

// takeLoop configures a free loop device; it returns EBUSY if somebody else was faster.
func takeLoop(control, file int, direct bool) (fd int, path string, err error) {
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return -1, "a free loop device", err
	}
	path = fmt.Sprintf("/dev/loop%d", n)
	if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return -1, path, err
	}
	config := unix.LoopConfig{Fd: uint32(file)}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	if direct {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	err = unix.IoctlLoopConfigure(fd, &config)
	if err == unix.EINVAL && direct { // some kernels refuse direct IO on some files instead of doing without
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(fd, &config)
	}
	if err != nil {
		unix.Close(fd)
		return -1, path, err
	}
	return fd, path, nil
}
