package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/scheduler/api"
)

// FunctionsConfig are the settings of the functions that the node runs for the cluster's schedulers.
type FunctionsConfig struct {
	// Enabled lets schedulers run functions on this node. Needs schedulers, and a containerd that knows the snapshotter. Default false.
	Enabled bool `toml:"enabled"`
	// Containerd is the unix socket of containerd. Default /run/containerd/containerd.sock.
	Containerd string `toml:"containerd"`
	// Namespace of containerd for the functions' containers. It belongs to the agent alone: what it does not know there is removed.
	// Default xylem-fn.
	Namespace string `toml:"namespace"`
	// Snapshotter is the agent's name in containerd's proxy_plugins. Default xylem.
	Snapshotter string `toml:"snapshotter"`
	// Runtime is containerd's runtime of the functions' containers. Default io.containerd.runc.v2.
	Runtime string `toml:"runtime"`
	// Memory and CPU are what all instances may be promised together, as "8GiB" and in cores. Default 0: three quarters of the machine's
	// memory, and eight times its cores, because most instances are idle most of the time.
	Memory Size    `toml:"memory"`
	CPU    float64 `toml:"cpu"`
	// PauseAfter is how long an instance without invocations runs on before it is frozen, until the next one. Default 10s; negative: never.
	PauseAfter Duration `toml:"pause_after"`
}

func defaultFunctions() FunctionsConfig {
	return FunctionsConfig{Containerd: "/run/containerd/containerd.sock", Namespace: "xylem-fn", Snapshotter: "xylem", Runtime: "io.containerd.runc.v2",
		PauseAfter: Duration{10 * time.Second}}
}

func (c FunctionsConfig) validate(schedulers []string) error {
	switch {
	case !c.Enabled:
		return nil
	case len(schedulers) == 0:
		return errors.New("configuration: functions.enabled needs schedulers: nobody else gives work")
	case c.Containerd == "" || c.Namespace == "" || c.Snapshotter == "" || c.Runtime == "":
		return errors.New("configuration: functions.containerd, namespace, snapshotter and runtime must not be empty")
	case c.Memory < 0 || c.CPU < 0:
		return errors.New("configuration: functions.memory and functions.cpu must not be negative")
	}
	return nil
}

// overcommit is how much more CPU is promised to instances than there is.
const overcommit = 8

// room returns what instances may be promised together, in bytes and thousandths of a core.
func (c FunctionsConfig) room() (memory int64, cpu int, err error) {
	memory, cpu = int64(c.Memory), int(c.CPU*1000)
	if memory == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return 0, 0, fmt.Errorf("memory of this machine: %w", err)
		}
		memory = int64(info.Totalram) * int64(info.Unit) / 4 * 3
	}
	if cpu == 0 {
		cpu = overcommit * 1000 * runtime.NumCPU()
	}
	return memory, cpu, nil
}

// newExecutor returns what runs functions on this node, nil if nothing does.
func (a *agent) newExecutor() (*executor.Executor, error) {
	f := a.cfg.Functions
	if !f.Enabled {
		return nil, nil
	}
	memory, cpu, err := f.room()
	if err != nil {
		return nil, err
	}
	return executor.New(executor.Config{
		Zone: a.cfg.Zone, State: filepath.Join(a.cfg.State, "functions"), Containerd: f.Containerd, Namespace: f.Namespace, Snapshotter: f.Snapshotter,
		Runtime: f.Runtime, Resolver: puller{a}, Images: functionImages{a}, Memory: memory, CPU: cpu, PauseAfter: f.PauseAfter.Duration, Log: a.cfg.Log,
	})
}

// functionImages answers the executor's questions about images.
type functionImages struct{ a *agent }

// Held implements executor.Images.
func (f functionImages) Held() []digest.Digest {
	s := f.a.images
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]digest.Digest, 0, len(s.images))
	for _, im := range s.images {
		list = append(list, im.artifact.Source.Digest)
	}
	return list
}

// Resolve implements executor.Images. It has an image without a block image converted.
func (f functionImages) Resolve(ctx context.Context, ref string) (answer api.ImageAnswer, err error) {
	o, source, err := f.a.resolve(ctx, ref)
	if err != nil {
		return answer, err
	}
	answer.Digest = source
	if answer.Entrypoint, err = f.program(ctx, o, source); err != nil {
		return answer, err
	}
	_, err = f.a.images.find(ctx, o, source)
	if errors.Is(err, blockfmt.ErrNotFound) {
		f.a.converter.add(o, source)
		f.a.converter.finish(ctx, source)
		_, err = f.a.images.find(ctx, o, source)
	}
	answer.Converted = err == nil
	if errors.Is(err, blockfmt.ErrNotFound) { // its instances start all the same, after a pull
		f.a.cfg.Log.Warn("image of a function is not converted", "ref", ref, "source", source)
		err = nil
	}
	return answer, err
}

// program returns an image's entrypoint and command.
func (f functionImages) program(ctx context.Context, o origin, source digest.Digest) ([]string, error) {
	from, err := f.a.place(o)
	if err != nil {
		return nil, err
	}
	text, err := from.Manifest(ctx, source)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, blockfmt.ErrCorrupt)
	}
	text, err = from.Blob(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	var image ocispec.Image
	if err := json.Unmarshal(text, &image); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, blockfmt.ErrUnsupported)
	}
	if image.OS != runtime.GOOS || image.Architecture != runtime.GOARCH {
		return nil, fmt.Errorf("it is for %s/%s, nodes are %s/%s: %w", image.OS, image.Architecture, runtime.GOOS, runtime.GOARCH, blockfmt.ErrUnsupported)
	}
	return slices.Concat(image.Config.Entrypoint, image.Config.Cmd), nil
}

// puller lets containerd's client pull with the node's registry client: its credentials, mirrors and certificates.
type puller struct{ a *agent }

// Resolve implements remotes.Resolver.
func (p puller) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	_, desc, err := p.a.registry.Resolve(ctx, ref)
	return ref, desc, err
}

// Fetcher implements remotes.Resolver.
func (p puller) Fetcher(_ context.Context, ref string) (remotes.Fetcher, error) {
	repo, err := p.a.registry.Repository(ref)
	return fetcher{repo}, err
}

// Pusher implements remotes.Resolver.
func (p puller) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, errors.New("the agent does not push")
}

// fetcher reads what containerd wants of a repository.
type fetcher struct{ repo *registry.Repository }

// Fetch implements remotes.Fetcher.
func (f fetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) {
		body, _, err := f.repo.Manifest(ctx, desc.Digest)
		return io.NopCloser(bytes.NewReader(body)), err
	}
	return f.repo.Range(ctx, desc.Digest, 0, desc.Size) // containerd verifies what it reads
}

// runFunctions runs functions until ctx ends and their instances have, and then calls over.
func (a *agent) runFunctions(ctx context.Context, over func()) error {
	defer over()
	return a.executor.Run(ctx)
}
