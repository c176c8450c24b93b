package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/figures"
)

// coldRows are what measureCold measures.
var coldRows = []figures.Row{
	figures.Shown("cold_local_seconds", "start of an instance whose image is on the node"),
	figures.Shown("cold_runc_seconds", "start of the same container by runc alone"),
	figures.AtMost("cold_local_minus_runc_seconds", "what the first takes longer", "≤ 60 ms", 0.060),
}

// measureCold measures the start of an instance whose image is on the node, and in turn with it what runc alone takes with the same
// configuration on the same mounts: both from the call until the program asks for its first invocation.
func measureCold(ctx context.Context, run *figures.Run) (err error) {
	n, err := startFunctionNode(ctx, run.Xylem)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if _, err := n.start(ctx, "first"); err != nil { // brings the image
		return err
	}
	bundle, err := n.bundle(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bundle.close(ctx)) }()
	if err := n.remove(ctx, "first"); err != nil {
		return err
	}
	var cold, alone, over []float64
	for i := range 2 * run.Rounds {
		id := fmt.Sprintf("cold-%d", i)
		a, err := n.start(ctx, id)
		if err != nil {
			return err
		}
		if err := n.remove(ctx, id); err != nil {
			return err
		}
		b, err := bundle.run(ctx, id)
		if err != nil {
			return err
		}
		cold, alone, over = append(cold, a.Seconds()), append(alone, b.Seconds()), append(over, (a-b).Seconds())
	}
	run.Add(figures.Summary("cold_local_seconds", "s", cold), figures.Summary("cold_runc_seconds", "s", alone),
		figures.Summary("cold_local_minus_runc_seconds", "s", over))
	return nil
}

// runcBundle is the configuration of an instance, and a root like its own, for runc alone.
type runcBundle struct {
	client *containerd.Client
	dir    string
	asked  chan struct{} // a program asks for its first invocation
	server *http.Server
}

// bundleSnapshot is the name of the bundle's root in the snapshotter.
const bundleSnapshot = "bundle"

// bundle makes one of the instance "first". Its program finds a server on the machine's loopback device.
func (n *functionNode) bundle(ctx context.Context) (*runcBundle, error) {
	ctx = namespaces.WithNamespace(ctx, functionNamespace())
	client, err := containerd.New(n.node.Containerd.Address)
	if err != nil {
		return nil, err
	}
	b := &runcBundle{client: client, dir: n.lab.Path("bundle"), asked: make(chan struct{})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	b.server = &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b.asked <- struct{}{}
		<-r.Context().Done()
	})}
	go b.server.Serve(ln) // until close
	if err := errors.Join(b.configure(ctx, ln.Addr().String()), b.mount(ctx)); err != nil {
		return nil, errors.Join(err, b.close(ctx))
	}
	return b, nil
}

func (b *runcBundle) configure(ctx context.Context, api string) error {
	c, err := b.client.LoadContainer(ctx, "first")
	if err != nil {
		return err
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return err
	}
	var kept []specs.LinuxNamespace
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace {
			kept = append(kept, ns)
		}
	}
	spec.Linux.Namespaces = kept
	spec.Linux.CgroupsPath += "-bundle"
	for i, e := range spec.Process.Env {
		if strings.HasPrefix(e, "AWS_LAMBDA_RUNTIME_API=") {
			spec.Process.Env[i] = "AWS_LAMBDA_RUNTIME_API=" + api
		}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(b.dir, "rootfs"), 0o711); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "config.json"), text, 0o600)
}

func (b *runcBundle) mount(ctx context.Context) error {
	list, err := b.client.ListImages(ctx)
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return fmt.Errorf("%d images in containerd, want the function's", len(list))
	}
	ids, err := list[0].RootFS(ctx)
	if err != nil {
		return err
	}
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "bench-fn"}) // or containerd collects it as garbage
	mounts, err := b.client.SnapshotService("xylem").Prepare(ctx, bundleSnapshot, identity.ChainID(ids).String(), root)
	if err != nil {
		return err
	}
	return mount.All(mounts, filepath.Join(b.dir, "rootfs"))
}

func (b *runcBundle) runc(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "runc", append([]string{"--root", filepath.Join(b.dir, "state")}, args...)...)
}

// run starts the program by runc, waits until it asks for an invocation, and removes it.
func (b *runcBundle) run(ctx context.Context, id string) (time.Duration, error) {
	log := filepath.Join(b.dir, "log") // not a pipe, which the program would keep open
	begin := time.Now()
	if err := b.runc(ctx, "--log", log, "run", "--detach", "--bundle", b.dir, id).Run(); err != nil {
		text, _ := os.ReadFile(log)
		return 0, fmt.Errorf("runc run: %w: %s", err, text)
	}
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	var took time.Duration
	var err error
	select {
	case <-b.asked:
		took = time.Since(begin)
	case <-late.C:
		err = errors.New("the program that runc started does not ask for an invocation")
	}
	if out, e := b.runc(ctx, "delete", "--force", id).CombinedOutput(); e != nil {
		err = errors.Join(err, fmt.Errorf("runc delete: %w: %s", e, out))
	}
	return took, err
}

func (b *runcBundle) close(ctx context.Context) error {
	ctx = namespaces.WithNamespace(context.WithoutCancel(ctx), functionNamespace())
	return errors.Join(
		mount.UnmountAll(filepath.Join(b.dir, "rootfs"), unix.MNT_DETACH),
		b.client.SnapshotService("xylem").Remove(ctx, bundleSnapshot),
		b.client.Close(), b.server.Close())
}
