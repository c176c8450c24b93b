package executor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	kernelseccomp "github.com/containerd/containerd/v2/pkg/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	// cpuPeriod is the period of CPU limits, in microseconds.
	cpuPeriod = 100_000
	// maxFiles is how many files a process may open.
	maxFiles = 65_536
	// tmpSize is the size of /tmp where the rest of the root is read-only, as in AWS. What is in it counts as memory.
	tmpSize = "512m"
	// oomScore makes the kernel end functions before anything else when the node's memory ends.
	oomScore = 500
)

// httpCapabilities are those that servers in images use: to become another user after they have bound a port. The rest of containerd's
// default is for administration, raw sockets and device files.
var httpCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
}

// spec returns the OCI configuration of an instance.
func (e *Executor) spec(ctx context.Context, in *instance, im *image, ns *netns) (*oci.Spec, error) {
	s, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: in.id})
	if err != nil {
		return nil, err
	}
	if err := setProcess(s.Process, in.fn, im); err != nil {
		return nil, err
	}
	if in.fn.Contract == api.ContractLambda { // as in AWS, where a function has no privilege and can write below /tmp only
		s.Process.Capabilities = &specs.LinuxCapabilities{}
		s.Root.Readonly = true
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "mode=1777", "size=" + tmpSize}})
	}
	s.Hostname = in.id
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: e.hostsFile(), Options: []string{"rbind", "ro"}})
	for i, n := range s.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = ns.path
		}
	}
	s.Linux.CgroupsPath = string(in.cgroup)
	limit(s.Linux.Resources, in.fn, e.cfg.PIDs)
	if kernelseccomp.IsEnabled() {
		s.Linux.Seccomp = seccomp.DefaultProfile(s) // depends on the capabilities
	}
	return s, oci.WithDefaultUnixDevices(ctx, nil, nil, s)
}

func limit(r *specs.LinuxResources, fn api.Function, pids int64) {
	memory, quota, period := fn.Memory, int64(fn.CPU)*cpuPeriod/1000, uint64(cpuPeriod)
	shares := max(2, uint64(fn.CPU)*1024/1000)
	r.Memory = &specs.LinuxMemory{Limit: &memory, Swap: &memory}
	r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares}
	r.Pids = &specs.LinuxPids{Limit: &pids}
}

func setProcess(p *specs.Process, fn api.Function, im *image) error {
	p.User = im.user
	p.Cwd = "/"
	for _, dir := range []string{im.config.WorkingDir, fn.WorkDir} {
		if dir != "" {
			p.Cwd = filepath.Join("/", dir)
		}
	}
	entrypoint, args := im.config.Entrypoint, im.config.Cmd
	if len(fn.Args) > 0 {
		args = fn.Args
	}
	if len(fn.Command) > 0 {
		entrypoint, args = fn.Command, fn.Args
	}
	p.Args = slices.Concat(entrypoint, args)
	if len(p.Args) == 0 {
		return fail(api.FailureImage, "image %s says no command, and neither does the function", im.name)
	}
	p.Env = environment(fn, im.config.Env, args)
	p.Capabilities = &specs.LinuxCapabilities{Bounding: httpCapabilities, Permitted: httpCapabilities, Effective: httpCapabilities}
	files, err := fileLimit()
	if err != nil {
		return err
	}
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: files, Soft: files}}
	score := oomScore
	p.OOMScoreAdj = &score
	return nil
}

// fileLimit is maxFiles, or less where the agent itself may not open that many.
func fileLimit() (uint64, error) {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return 0, err
	}
	return min(maxFiles, own.Max), nil
}

// environment is what the contract says, under what the image and the function say, under what only the agent can say.
func environment(fn api.Function, image, args []string) (env []string) {
	base, fixed := httpEnvironment(fn)
	if fn.Contract == api.ContractLambda {
		base, fixed = lambdaEnvironment(fn, args)
	}
	values := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	maps.Copy(values, base)
	for _, e := range image {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			values[name] = value
		}
	}
	maps.Copy(values, fn.Env)
	maps.Copy(values, fixed)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		env = append(env, name+"="+values[name])
	}
	return env
}

func httpEnvironment(fn api.Function) (base, fixed map[string]string) {
	return map[string]string{
		"K_SERVICE": fn.Name, "K_CONFIGURATION": fn.Name, "K_REVISION": fmt.Sprintf("%s-%d", fn.Name, fn.Version),
	}, map[string]string{"PORT": strconv.Itoa(httpPort)}
}

func lambdaEnvironment(fn api.Function, args []string) (base, fixed map[string]string) {
	base = map[string]string{
		"AWS_REGION": region, "AWS_DEFAULT_REGION": region, "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
		"LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime", "LANG": "en_US.UTF-8", "TZ": ":UTC",
		"AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/" + fn.Name, "AWS_LAMBDA_LOG_STREAM_NAME": fn.ID(),
	}
	fixed = map[string]string{
		"AWS_LAMBDA_RUNTIME_API": runtimeAddress, "AWS_LAMBDA_FUNCTION_NAME": fn.Name, "AWS_LAMBDA_FUNCTION_VERSION": strconv.Itoa(fn.Version),
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.FormatInt(fn.Memory>>20, 10),
	}
	if len(args) > 0 {
		fixed["_HANDLER"] = args[0]
	}
	return base, fixed
}

// region is that of functions' ARNs.
const region = "xylem"

// hostsFile is the /etc/hosts of all instances: they have no other host.
func (e *Executor) hostsFile() string { return filepath.Join(e.cfg.State, "hosts") }

func (e *Executor) writeHosts() error {
	return os.WriteFile(e.hostsFile(), []byte("127.0.0.1\tlocalhost\n"), 0o644)
}
