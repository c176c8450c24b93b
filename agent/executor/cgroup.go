package executor

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroupRoot is where cgroups are mounted, of version 2 or of version 1 with a directory for each controller.
const cgroupRoot = "/sys/fs/cgroup"

// A cgroup is that of an instance, by its path below the hierarchies' roots. It is made and removed by the runtime.
type cgroup string

// errNoCgroup says that the instance's cgroup cannot be written directly.
var errNoCgroup = errors.New("no such cgroup")

// freeze stops or continues all processes. Done directly it takes microseconds; the runtime starts a process for it.
func (c cgroup) freeze(frozen bool) error {
	v1, v2 := "THAWED", "0"
	if frozen {
		v1, v2 = "FROZEN", "1"
	}
	err := c.write(filepath.Join(cgroupRoot, "freezer", string(c), "freezer.state"), v1)
	if errors.Is(err, errNoCgroup) {
		err = c.write(filepath.Join(cgroupRoot, string(c), "cgroup.freeze"), v2)
	}
	return err
}

func (c cgroup) write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return errNoCgroup
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// outOfMemory says whether the kernel killed a process of the cgroup because of its limit.
func (c cgroup) outOfMemory() bool {
	for _, path := range []string{
		filepath.Join(cgroupRoot, "memory", string(c), "memory.oom_control"), filepath.Join(cgroupRoot, string(c), "memory.events"),
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
				n, err := strconv.Atoi(f[1])
				return err == nil && n > 0
			}
		}
	}
	return false
}
