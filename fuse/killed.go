package fuse

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// beingKilled reports whether the thread has a SIGKILL pending, which is also how the kernel marks every thread of a
// process that any other signal ends, or is gone. A thread that cannot be seen from here is taken to live.
func beingKilled(thread uint32) bool {
	if thread == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return os.IsNotExist(err)
	}
	for line := range bytes.Lines(status) {
		for _, field := range []string{"SigPnd:", "ShdPnd:"} {
			if hex, ok := bytes.CutPrefix(line, []byte(field)); ok && hasKill(hex) {
				return true
			}
		}
	}
	return false
}

func hasKill(mask []byte) bool {
	bits, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
	return err == nil && bits&(1<<(unix.SIGKILL-1)) != 0
}
