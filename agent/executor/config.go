package executor

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Images is what the executor asks the agent. Implementations are safe for concurrent use.
type Images interface {
	// Held lists the source manifests of which instances can start without asking a registry.
	Held() []digest.Digest
	// Resolve says what a reference names now and whether it can run lazily. Errors wrap blockfmt's kinds.
	Resolve(ctx context.Context, ref string) (api.ImageAnswer, error)
}

// Config of an Executor.
type Config struct {
	// Peer and Zone name the node in its status.
	Peer, Zone string
	// State is the directory of network namespaces and pipes. It may be on a tmpfs and belongs to the executor alone. Required.
	State string
	// Containerd is the path of containerd's socket. Default /run/containerd/containerd.sock.
	Containerd string
	// Namespace in containerd, which belongs to the executor alone: what it does not know there is removed. Default "xylem-fn".
	Namespace string
	// Snapshotter of containerd. Default "xylem".
	Snapshotter string
	// Runtime of containerd. Default "io.containerd.runc.v2".
	Runtime string
	// Resolver finds images for pulls. Required.
	Resolver remotes.Resolver
	// Images answers for the agent. Required.
	Images Images
	// Memory, in bytes, and CPU, in thousandths of a core, are for all instances together. Required.
	Memory int64
	CPU    int
	// PauseAfter is how long an instance without invocations runs on before it is frozen. Default 10s; negative: never.
	PauseAfter time.Duration
	// StopGrace is how long a program has to end after SIGTERM. Default 10s.
	StopGrace time.Duration
	// HealthEvery is how often an idle instance of the contract "http" is asked for a connection. Default 10s.
	HealthEvery time.Duration
	// Spares is how many network namespaces are kept ready for the next starts. Default 4.
	Spares int
	// PIDs bounds the processes and threads of an instance. Default 1024.
	PIDs int64
	// LogBytes bounds the log kept of a function, in memory; LogRate is how many bytes per second of it are kept in the long run, what
	// comes faster is counted and thrown away. Default 1 MiB each.
	LogBytes, LogRate int
	// KeepImages is how long an image is kept in containerd after the last start of an instance of it. Default 24h.
	KeepImages time.Duration
	// Failures in a row after which starts of a function's version are refused for a while. Default 3.
	Failures int
	// Backoff is how long the first time; it doubles with each further failure, up to MaxBackoff. Default 1s and 5m.
	Backoff, MaxBackoff time.Duration
	// Log of the executor. Default: none.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	c.Containerd = cmp.Or(c.Containerd, "/run/containerd/containerd.sock")
	c.Namespace = cmp.Or(c.Namespace, "xylem-fn")
	c.Snapshotter = cmp.Or(c.Snapshotter, "xylem")
	c.Runtime = cmp.Or(c.Runtime, "io.containerd.runc.v2")
	c.PauseAfter = cmp.Or(c.PauseAfter, 10*time.Second)
	c.StopGrace = cmp.Or(c.StopGrace, 10*time.Second)
	c.HealthEvery = cmp.Or(c.HealthEvery, 10*time.Second)
	c.Spares = cmp.Or(c.Spares, 4)
	c.PIDs = cmp.Or(c.PIDs, 1024)
	c.LogBytes = cmp.Or(c.LogBytes, 1<<20)
	c.LogRate = cmp.Or(c.LogRate, 1<<20)
	c.KeepImages = cmp.Or(c.KeepImages, 24*time.Hour)
	c.Failures = cmp.Or(c.Failures, 3)
	c.Backoff = cmp.Or(c.Backoff, time.Second)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, 5*time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case !strings.HasPrefix(c.State, "/"):
		return c, errors.New("executor: State must be an absolute path")
	case c.Resolver == nil || c.Images == nil:
		return c, errors.New("executor: Resolver and Images are required")
	case c.Memory < api.MinMemory || c.CPU < 1:
		return c, errors.New("executor: Memory and CPU for instances are required")
	case c.Spares < 0 || c.PIDs < 1 || c.KeepImages < 0 || c.LogBytes < 0 || c.LogRate < 0 || c.Failures < 1:
		return c, errors.New("executor: a bound is negative")
	}
	return c, nil
}

// direct says that instances are processes of this kernel, in cgroups that may be written directly.
func (c Config) direct() bool { return strings.HasPrefix(c.Runtime, "io.containerd.runc.") }
