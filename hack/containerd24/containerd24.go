// Package containerd24 builds containerd 2.4 from its Go module, because Debian's stable releases carry older ones and the
// tests are to cover both.
package containerd24

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Version that is built; the module proxy's checksum database vouches for the source.
const Version = "v2.4.2"

const module = "github.com/containerd/containerd/v2"

var programs = []string{"containerd", "containerd-shim-runc-v2", "ctr"}

// Build returns the directory with containerd, containerd-shim-runc-v2 and ctr, below the directory cache. It takes some
// minutes the first time. To use the shim, put the directory first in containerd's PATH. Safe for concurrent use, also by
// several processes.
func Build(ctx context.Context, cache string) (string, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "containerd-"+Version)
	if complete(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, "containerd-tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	args := []string{"install", "-trimpath", "-ldflags", "-s -w -X " + module + "/version.Version=" + Version}
	for _, p := range programs {
		args = append(args, module+"/cmd/"+p+"@"+Version)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "GOBIN="+work, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install %s@%s: %w: %s", module, Version, err, strings.TrimSpace(string(out)))
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", err
	}
	unix.Sync() // a complete directory has complete programs, also after a crash
	if err := os.Rename(work, dir); err != nil && !complete(dir) {
		return "", err
	}
	return dir, nil
}

func complete(dir string) bool {
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return false
		}
	}
	return true
}
