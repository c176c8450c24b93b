package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// child is a program that runs beside this one and ends with it.
type child struct {
	name             string
	network, address string // where it listens
	logFile          string
	cmd              *exec.Cmd
	ended            chan struct{} // closed when err is set
	err              error
}

// stopTimeout is how long a child has between SIGTERM and SIGKILL.
const stopTimeout = 15 * time.Second

// start starts it. If this process is killed, the kernel ends it.
func (c *child) start() error {
	out, err := os.OpenFile(c.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	c.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread that started it
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	return nil
}

// wait waits until it listens.
func (c *child) wait(ctx context.Context) error {
	return poll(ctx, c.name, func(ctx context.Context) error {
		select {
		case <-c.ended:
			return fmt.Errorf("%s ended: %w: see %s", c.name, errors.Join(c.err, errEnded), c.logFile)
		default:
		}
		return dialable(ctx, c.network, c.address)
	})
}

var errEnded = errors.New("it is not to end by itself")

// watch returns an error if it ends before ctx does.
func (c *child) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.ended:
		return fmt.Errorf("%s ended: %w: see %s", c.name, errors.Join(c.err, errEnded), c.logFile)
	}
}

func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	grace := time.NewTimer(stopTimeout)
	defer grace.Stop()
	select {
	case <-c.ended:
		return nil
	case <-grace.C:
	}
	err := c.cmd.Process.Kill()
	<-c.ended
	return errors.Join(fmt.Errorf("%s did not end within %v", c.name, stopTimeout), err)
}

const registryConfig = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: %q}
`

// startRegistry runs Debian's docker-registry.
func startRegistry(cfg Config) (*child, error) {
	if cfg.Registry == "" {
		return nil, nil
	}
	program, err := find("the docker-registry package, or say --registry \"\"", "docker-registry", "registry")
	if err != nil {
		return nil, err
	}
	if dialable(context.Background(), "tcp", cfg.Registry) == nil {
		return nil, fmt.Errorf("registry: somebody listens on %s already: name another address with --registry, or none with --registry \"\"", cfg.Registry)
	}
	dir := filepath.Join(cfg.Agent.Root, "registry")
	config := filepath.Join(cfg.Agent.State, "registry.yml")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, dir, cfg.Registry), 0o600); err != nil {
		return nil, err
	}
	c := &child{name: "registry", network: "tcp", address: cfg.Registry, logFile: filepath.Join(cfg.Agent.Root, "registry.log"),
		cmd: exec.Command(program, "serve", config)}
	return c, c.start()
}

// containerdConfig is read by containerd 1.6 and later. The shims' OOM score is left alone: it needs a capability that not every machine
// gives.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[proxy_plugins.%s]
  type = "snapshot"
  address = %q
`

// startContainerd runs the machine's containerd with the agent as a snapshotter.
func startContainerd(cfg Config) (*child, error) {
	program, err := find("the containerd package", "containerd")
	if err != nil {
		return nil, err
	}
	if _, err := find("the runc package", "runc"); err != nil {
		return nil, err
	}
	f := cfg.Agent.Functions
	text := fmt.Sprintf(containerdConfig, filepath.Join(cfg.Agent.Root, "containerd"), filepath.Join(cfg.Agent.State, "containerd"), f.Containerd,
		f.Snapshotter, cfg.Agent.Socket())
	config := filepath.Join(cfg.Agent.State, "containerd.toml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	c := &child{name: "containerd", network: "unix", address: f.Containerd, logFile: filepath.Join(cfg.Agent.Root, "containerd.log"),
		cmd: exec.Command(program, "--config", config)}
	return c, c.start()
}

// find returns the first of some programs that is installed.
func find(install string, names ...string) (string, error) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: install %s", names[0], install)
}
