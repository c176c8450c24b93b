package nodelab

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

type unixRusage = syscall.Rusage

// output runs a command and returns its stdout; errors say what it printed on stderr.
func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
