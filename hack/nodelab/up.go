package nodelab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/scheduler/api"
)

// Up is a running `xylem up`: a registry, containerd, a scheduler and an agent, with directories of their own and on loopback.
type Up struct {
	API, Registry, Metrics string // addresses
	User                   *api.User

	xylem, dir string
	args       []string
	process    *Process
}

// StartUp starts one. The caller closes it.
func StartUp(ctx context.Context, xylem string) (_ *Up, err error) {
	u := &Up{xylem: xylem}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	if u.dir, err = os.MkdirTemp("/var/tmp", "xylem-up-"); err != nil { // a short path, for sockets
		return nil, err
	}
	ports, err := freePorts(5)
	if err != nil {
		return nil, err
	}
	u.API, u.Registry, u.Metrics = ports[0], ports[1], ports[2]
	u.args = []string{"--root", filepath.Join(u.dir, "r"), "--state", filepath.Join(u.dir, "s"), "up", "--listen", u.API, "--registry", u.Registry,
		"--scheduler-admin", u.Metrics, "--proxy", ports[3], "--peers", ports[4], "--admin", ""}
	if u.User, err = api.NewUser(api.UserConfig{URL: "http://" + u.API}); err != nil {
		return nil, err
	}
	return u, u.Start(ctx)
}

// Start starts it again after Kill, and returns when functions can be invoked.
func (u *Up) Start(ctx context.Context) (err error) {
	if u.process, err = StartProcess(here{}, u.log(), exec.Command(u.xylem, u.args...)); err != nil {
		return err
	}
	return u.process.Poll(ctx, time.Minute, func() error {
		nodes, err := u.User.Nodes(ctx)
		if err == nil && len(nodes) == 0 {
			err = errors.New("the agent takes no work yet")
		}
		return err
	})
}

func (u *Up) log() string { return filepath.Join(u.dir, "up.log") }

// Kill ends it like a crash, by SIGKILL.
func (u *Up) Kill() error {
	err := u.process.Kill()
	u.process = nil
	return err
}

// Push puts an image into its registry and returns the image's reference.
func (u *Up) Push(ctx context.Context, repository string, image v1.Image) (string, error) {
	ref, err := name.ParseReference(u.Registry+"/"+repository, name.Insecure)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, image, remote.WithContext(ctx))
}

// Fn runs `xylem fn` and returns its stdout.
func (u *Up) Fn(ctx context.Context, args ...string) (string, error) {
	return output(here{}, exec.CommandContext(ctx, u.xylem, append([]string{"fn", "--endpoint", "http://" + u.API}, args...)...))
}

// Log returns the end of its log, for error messages.
func (u *Up) Log() string { return tail(u.log()) }

// Below returns what is mounted below its directories.
func (u *Up) Below() ([]string, error) { return containerdtest.MountsBelow(u.dir) }

// Close ends it and removes its directory.
func (u *Up) Close() (err error) {
	if u.process != nil {
		err = u.process.Stop()
	}
	if u.dir == "" {
		return err
	}
	return errors.Join(err, containerdtest.UnmountBelow(u.dir), os.RemoveAll(u.dir))
}

// BuildFunction builds a program of hack/functions, which are given by the directory of the module, as a file.
func BuildFunction(ctx context.Context, module, program, to string) error {
	to, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", to, "./hack/functions/"+program)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the function %s: %w: %s", program, err, out)
	}
	return nil
}

// FunctionImage builds the image of a program of hack/functions, with more files if wanted.
func FunctionImage(ctx context.Context, module, program string, files map[string][]byte) (v1.Image, error) {
	dir, err := os.MkdirTemp("", "function-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	to := filepath.Join(dir, program)
	if err := BuildFunction(ctx, module, program, to); err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	if all["bin/fn"], err = os.ReadFile(to); err != nil {
		return nil, err
	}
	maps.Copy(all, files)
	return containerdtest.Image([]string{"/bin/fn"}, all)
}

// freePorts returns addresses on loopback at which nobody listens now.
func freePorts(n int) (addresses []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
