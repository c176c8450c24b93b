package nodelab

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

type unixRusage = syscall.Rusage

// output runs a command at a place and returns its stdout; errors say what it printed on stderr.
func output(place Place, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := place.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
