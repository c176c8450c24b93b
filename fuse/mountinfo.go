package fuse

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MountPath returns the absolute path under which the kernel lists mounts on dir, whose parents may be symbolic links. It does
// not look at dir itself, which may be a mount that does not answer.
func MountPath(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}

// IsMountPoint reports whether something is mounted on dir, a MountPath. Unlike looking at dir it cannot hang.
func IsMountPoint(dir string) (bool, error) {
	_, typ, err := mountAt(dir)
	return typ != "", err
}

// mountAt returns the device number ("major:minor") and type of the topmost mount on dir, without touching dir.
func mountAt(dir string) (dev, typ string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20) // an overlay's line names all of its layers
	for s.Scan() {
		if d, on, t := parseMount(s.Text()); on == dir {
			dev, typ = d, t
		}
	}
	return dev, typ, s.Err()
}

// parseMount returns the device, place and type that a line of mountinfo tells, or nothing for a line that is none.
func parseMount(line string) (dev, dir, typ string) {
	// 36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw
	head, tail, _ := strings.Cut(line, " - ")
	fields, after := strings.Fields(head), strings.Fields(tail)
	if len(fields) < 5 || len(after) < 1 {
		return "", "", ""
	}
	return fields[2], unescape(fields[4]), after[0]
}

// unescape undoes the octal escapes of mountinfo (space, tab, newline, backslash).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// clearDead takes away mounts of ours on dir whose server died, and refuses a directory on which another server answers.
func clearDead(dir string, log *slog.Logger) error {
	for {
		_, typ, err := mountAt(dir)
		if err != nil || typ != "fuse."+fsType {
			return err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != unix.ENOTCONN {
			return fmt.Errorf("%s: another process serves a FUSE mount there", dir)
		}
		log.Warn("FUSE mount of a server that died, unmounting lazily", "dir", dir)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount dead %s: %w", dir, err)
		}
	}
}
