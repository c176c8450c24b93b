package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/fuse/erofs"
)

// Free space below which nothing can be cached, in bytes.
const minimumSpace = 1 << 30

func (d *doctor) checkUser(context.Context) []finding {
	if os.Geteuid() != 0 {
		return []finding{fail("user", "run xylem as root", "user %d cannot mount", os.Geteuid())}
	}
	return []finding{ok("user", "root")}
}

func (d *doctor) checkKernel(context.Context) []finding {
	text, err := os.ReadFile(d.path("/proc/sys/kernel/osrelease"))
	release := strings.TrimSpace(string(text))
	var major, minor int
	if _, scanErr := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || scanErr != nil {
		return []finding{fail("kernel", "mount /proc", "unknown kernel release %q", release)}
	}
	switch {
	case major > 6 || major == 6 && minor >= 12:
		return []finding{ok("kernel", "Linux %s mounts EROFS images from files", release)}
	case major > 5 || major == 5 && minor >= 16:
		return []finding{warn("kernel", "update to Linux 6.12 or later", "Linux %s mounts EROFS images from loop devices only", release)}
	}
	return []finding{warn("kernel", "update to Linux 6.12 or later", "Linux %s cannot mount EROFS images with several devices", release)}
}

func (d *doctor) checkFilesystems(context.Context) []finding {
	text, err := os.ReadFile(d.path("/proc/filesystems"))
	if err != nil {
		return []finding{fail("filesystems", "mount /proc", "%v", err)}
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 0 {
			known[fields[len(fields)-1]] = true
		}
	}
	var findings []finding
	for _, f := range []struct{ name, without string }{
		{"overlay", "containers have no writable root"},
		{"fuse", "nothing can be mounted lazily"},
		{"erofs", "images are served file by file through FUSE, which is slower"},
	} {
		fix := fmt.Sprintf("modprobe %s, and have it loaded at boot (/etc/modules-load.d)", f.name)
		switch {
		case known[f.name]:
			findings = append(findings, ok(f.name, "the kernel knows it"))
		case f.name == "erofs":
			findings = append(findings, warn(f.name, fix, "the kernel does not know it: %s", f.without))
		default:
			findings = append(findings, fail(f.name, fix, "the kernel does not know it: %s", f.without))
		}
	}
	return findings
}

func (d *doctor) checkDevices(context.Context) []finding {
	var findings []finding
	if f, err := os.OpenFile(d.path("/dev/fuse"), os.O_RDWR, 0); err != nil {
		findings = append(findings, fail("/dev/fuse", "modprobe fuse, and give this machine or container access to /dev/fuse", "%v", err))
	} else {
		f.Close()
		findings = append(findings, ok("/dev/fuse", "can be opened"))
	}
	if _, err := os.Stat(d.path("/dev/loop-control")); err != nil {
		findings = append(findings, warn("/dev/loop-control", "modprobe loop; needed before Linux 6.12 only", "%v", err))
	} else {
		findings = append(findings, ok("/dev/loop-control", "is there"))
	}
	return findings
}

// checkMountWay mounts a small image in every way. A way that is not the best one is missed by nobody.
func (d *doctor) checkMountWay(ctx context.Context) []finding {
	const check = "mount way"
	found := erofs.Detect(ctx, "", d.config.Log)
	switch {
	case found.Way == 0:
		return []finding{fail(check, "correct what is FAIL above", "none works: %s", strings.TrimSpace(found.String()))}
	case found.Way != erofs.WayFile:
		return []finding{warn(check, "update to Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE", "%v is used, %v does not work: %v",
			found.Way, erofs.WayFile, found.Reasons[erofs.WayFile])}
	}
	return []finding{ok(check, "%v: the kernel's EROFS over files", found.Way)}
}

// checkDisk looks at the file system of the cache, or of the nearest directory above it that exists.
func (d *doctor) checkDisk(context.Context) []finding {
	dir := d.config.Root
	var fsinfo unix.Statfs_t
	err := unix.Statfs(dir, &fsinfo)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &fsinfo)
	}
	if err != nil {
		return []finding{fail("disk", "name another directory with --root", "%s: %v", dir, err)}
	}
	free, budget := int64(fsinfo.Bavail)*fsinfo.Bsize, int64(d.config.CacheBudget)
	used := diskUsage(filepath.Join(d.config.Root, "cache"))
	switch {
	case free < minimumSpace:
		return []finding{fail("disk", "free space, or name another directory with --root", "%s has %s free", dir, bytesText(free))}
	case free+used < budget:
		return []finding{warn("disk", "free space or lower cache_budget", "%s has %s free, the cache may grow to %s and has %s",
			dir, bytesText(free), bytesText(budget), bytesText(used))}
	}
	return []finding{ok("disk", "%s has %s free, the cache may grow to %s", dir, bytesText(free), bytesText(budget))}
}

// diskUsage returns the bytes that the files below dir take on disk; what cannot be read counts as nothing.
func diskUsage(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += stat.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

// path places a path of the system into the directory that tests use.
func (d *doctor) path(name string) string { return filepath.Join(d.sys, name) }
