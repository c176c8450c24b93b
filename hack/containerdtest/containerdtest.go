// Package containerdtest runs containerd daemons of their own for tests, demos and benchmarks: root, state, sockets and
// registry configuration lie below one directory, so that many run beside each other and beside the system's daemon.
package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options of a daemon.
type Options struct {
	// Binary of containerd: a path, or a name in PATH. Default "containerd".
	Binary string
	// Ctr is the client that Daemon.Ctr and Daemon.Stop use. Default "ctr".
	Ctr string
	// Dir holds everything of the daemon; it is created. A daemon that is started on the directory of an earlier one
	// continues with its state. Its path may have at most 80 bytes, because sockets lie in it.
	Dir string
	// Snapshotter is the unix socket of a proxy snapshotter, which the daemon knows by the name "xylem". Default: none.
	Snapshotter string
	// Registries, as host:port, are reached by plain HTTP.
	Registries []string
	// Mirror, as host:port, is asked by plain HTTP for every registry that is not in Registries. Default: none.
	Mirror string
	// CRI enables the plugin that kubelets talk to, on the same socket, with the snapshotter "xylem" if there is one.
	CRI bool
	// PauseImage of the CRI plugin's sandboxes. Default: containerd's own default.
	PauseImage string
	// StartTimeout bounds the time until the daemon serves. Default 30 s.
	StartTimeout time.Duration
	// Start starts the daemon's process, for one in a namespace. Default (*exec.Cmd).Start.
	Start func(*exec.Cmd) error
}

// Daemon is a running containerd.
type Daemon struct {
	Address string // path of the socket
	Version string // as the binary prints it, such as "1.6.20~ds1" or "v2.4.2"
	Major   int    // 1 or 2
	Dir     string
	LogPath string // the daemon's stderr

	opts   Options
	cmd    *exec.Cmd
	exited chan struct{} // closed once the process is gone and waitErr is set
	err    error
}

// Start writes a configuration that fits the binary's version and runs the daemon until it serves. ctx bounds the
// start only; the caller must call Stop.
func Start(ctx context.Context, opts Options) (*Daemon, error) {
	if opts.Binary == "" {
		opts.Binary = "containerd"
	}
	if opts.Ctr == "" {
		opts.Ctr = "ctr"
	}
	if opts.StartTimeout == 0 {
		opts.StartTimeout = 30 * time.Second
	}
	if opts.Start == nil {
		opts.Start = (*exec.Cmd).Start
	}
	if !filepath.IsAbs(opts.Dir) || len(opts.Dir) > 80 {
		return nil, fmt.Errorf("containerd's directory %q must be absolute and at most 80 bytes long", opts.Dir)
	}
	d := &Daemon{Dir: opts.Dir, Address: Socket(opts.Dir), LogPath: filepath.Join(opts.Dir, "containerd.log"), opts: opts, exited: make(chan struct{})}
	if err := d.detectVersion(ctx); err != nil {
		return nil, err
	}
	if err := d.writeConfig(); err != nil {
		return nil, err
	}
	if err := d.run(); err != nil {
		return nil, err
	}
	if err := d.waitUntilServing(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("containerd %s does not serve: %w; its log ends with:\n%s", d.Version, err, d.logTail()), d.Stop())
	}
	return d, nil
}

// Socket is where the containerd of a directory listens.
func Socket(dir string) string { return filepath.Join(dir, "containerd.sock") }

// detectVersion asks the binary: the configuration's format depends on it.
func (d *Daemon) detectVersion(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, d.opts.Binary, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", d.opts.Binary, err)
	}
	fields := strings.Fields(string(out)) // "containerd <package> <version> <revision>"
	if len(fields) < 3 {
		return fmt.Errorf("%s --version: unexpected output %q", d.opts.Binary, out)
	}
	d.Version = fields[2]
	major, _, _ := strings.Cut(strings.TrimPrefix(d.Version, "v"), ".")
	if d.Major, err = strconv.Atoi(major); err != nil {
		return fmt.Errorf("%s --version: version %q: %w", d.opts.Binary, d.Version, err)
	}
	return nil
}

// run starts the process in a process group of its own, so that an interrupt at the terminal leaves it to Stop. The
// kernel ends it when its parent dies without having called Stop.
func (d *Daemon) run() error {
	log, err := os.OpenFile(d.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(d.opts.Binary, "--config", d.configPath())
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if filepath.IsAbs(d.opts.Binary) { // with the shim beside it, not the one of another version in PATH
		d.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(d.opts.Binary)+":"+os.Getenv("PATH"))
	}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := d.opts.Start(d.cmd); err != nil {
		return err
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	return nil
}

// waitUntilServing polls the health service and, with CRI, the runtime service, which is ready a moment later.
func (d *Daemon) waitUntilServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.opts.StartTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return d.poll(ctx, func(ctx context.Context) error {
		// A channel that failed to connect backs off for seconds; the socket appears within milliseconds.
		conn.ResetConnectBackoff()
		if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			return err
		}
		if !d.opts.CRI {
			return nil
		}
		_, err := runtime.NewRuntimeServiceClient(conn).Version(ctx, &runtime.VersionRequest{})
		return err
	})
}

// poll calls check until it succeeds, ctx ends or the daemon exits.
func (d *Daemon) poll(ctx context.Context, check func(context.Context) error) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := check(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-d.exited:
			return fmt.Errorf("it exited: %w", d.err)
		case <-ticker.C:
		}
	}
}

// Pid of the daemon.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Ctr returns a command of the ctr client for this daemon.
func (d *Daemon) Ctr(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, d.opts.Ctr, append([]string{"--address", d.Address}, args...)...)
}

// HostsDir is the directory of hosts.toml files that make opts.Registries plain HTTP: for `ctr image pull --hosts-dir`,
// which does not read the daemon's configuration before 2.x.
func (d *Daemon) HostsDir() string { return filepath.Join(d.Dir, "certs.d") }

// logTail returns the end of the daemon's log for error messages.
func (d *Daemon) logTail() string {
	const tail = 4 << 10
	text, _ := os.ReadFile(d.LogPath)
	if len(text) > tail {
		text = text[len(text)-tail:]
	}
	return string(text)
}
