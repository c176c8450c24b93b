package fuse

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAt returns the device number ("major:minor") and type of the topmost mount on dir, without touching dir.
func mountAt(dir string) (dev, typ string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// 36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw
		head, tail, ok := strings.Cut(s.Text(), " - ")
		fields, after := strings.Fields(head), strings.Fields(tail)
		if ok && len(fields) >= 5 && len(after) >= 1 && unescape(fields[4]) == dir {
			dev, typ = fields[2], after[0]
		}
	}
	return dev, typ, nil
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
