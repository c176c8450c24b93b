package containerdtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const containerdModule = "github.com/containerd/containerd/v2"

// binaries of containerd that Build makes.
var binaries = []string{"containerd", "containerd-shim-runc-v2", "ctr"}

// Build makes the containerd 2.x that this module requires, and its shim and ctr, from their Go modules: no distribution
// that we test on has it. The result is kept in cache, a directory, for the next time; the first time takes minutes.
// It returns the options that make Start use it.
func Build(ctx context.Context, cache string) (Options, error) {
	version, source, err := findModule(ctx)
	if err != nil {
		return Options{}, err
	}
	dir, err := filepath.Abs(filepath.Join(cache, "containerd-"+strings.TrimPrefix(version, "v")))
	if err != nil {
		return Options{}, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return Options{}, err
	}
	defer unlock()
	opts := Options{Binary: filepath.Join(dir, "containerd"), Ctr: filepath.Join(dir, "ctr")}
	for _, name := range binaries {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return Options{}, fmt.Errorf("build %s of %s: %w\n%s", name, version, err, out)
		}
	}
	return opts, nil
}

// findModule returns the version of containerd that go.mod requires, and where its source is.
func findModule(ctx context.Context) (version, dir string, err error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", containerdModule)
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("go list -m %s: %w", containerdModule, err)
	}
	version, dir, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok || dir == "" {
		return "", "", fmt.Errorf("go list -m %s: no source in the module cache, run go mod download: %q", containerdModule, out)
	}
	return version, dir, nil
}

// lock makes dir and keeps other processes, such as tests of another package, from building into it.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
