package containerdtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/xylem-project/xylem/agent/snapshotter"
	"github.com/xylem-project/xylem/blockfmt"
)

// versions are the containerds that every test of the snapshotter runs on.
func versions(t *testing.T) map[string]Options {
	t.Helper()
	two, err := Build(t.Context(), filepath.Join("..", "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]Options{"1.6": {}, "2.4": two}
}

// trees are the images of a snapshotter: directories that hold what the layers of a chain unpack to.
type trees struct {
	mu       sync.Mutex
	dirs     map[digest.Digest]string
	requests []snapshotter.Request
	mounted  int
}

func (f *trees) Resolve(_ context.Context, req snapshotter.Request) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, req)
	if _, ok := f.dirs[req.ChainID]; !ok {
		return fmt.Errorf("chain %s: %w", req.ChainID, blockfmt.ErrNotFound)
	}
	return nil
}

func (f *trees) Mount(_ context.Context, chainID digest.Digest) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted++
	return f.dirs[chainID], nil
}

func (f *trees) Unmount(context.Context, digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted--
	return nil
}

func (f *trees) asked() []snapshotter.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]snapshotter.Request(nil), f.requests...)
}

// serveSnapshots serves a snapshotter until the test ends and returns its socket.
func serveSnapshots(t *testing.T, images snapshotter.Images) (*snapshotter.Snapshotter, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sn")
	if err != nil {
		t.Fatal(err)
	}
	s, err := snapshotter.Open(t.Context(), snapshotter.Config{Root: filepath.Join(dir, "root"), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, images)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, filepath.Join(dir, "sn.sock")) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s, filepath.Join(dir, "sn.sock")
}

// unpacked makes the directories of the first n chains of the test program's image.
func unpacked(t *testing.T, ref string, n int) map[digest.Digest]string {
	t.Helper()
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var diffIDs []digest.Digest
	for _, d := range config.RootFS.DiffIDs {
		diffIDs = append(diffIDs, digest.Digest(d.String()))
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[digest.Digest]string{}
	for i, chainID := range identity.ChainIDs(diffIDs)[:n] {
		dir := t.TempDir()
		for _, l := range layers[:i+1] {
			untar(t, l.Uncompressed, dir)
		}
		if err := os.WriteFile(filepath.Join(dir, "lazy"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		dirs[chainID] = dir
	}
	return dirs
}

func untar(t *testing.T, open func() (io.ReadCloser, error), dir string) {
	t.Helper()
	r, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	cmd.Stdin = r
	run(t, cmd)
}

// connect returns a client in the namespace that ctr uses by default.
func connect(t *testing.T, d *Daemon) (context.Context, *client.Client) {
	t.Helper()
	c, err := client.New(d.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return namespaces.WithNamespace(t.Context(), "default"), c
}

// pull pulls as the CRI plugin and the clients for lazy images do.
func pull(t *testing.T, d *Daemon, ref string) client.Image {
	t.Helper()
	ctx, c := connect(t, d)
	plain := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))})
	img, err := c.Pull(ctx, ref, client.WithPullUnpack, client.WithPullSnapshotter("xylem"), client.WithResolver(plain),
		client.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)))
	if err != nil {
		t.Fatalf("pull: %v\n%s", err, d.logTail())
	}
	return img
}

// TestPullThroughSnapshotter pulls and runs an image of which trees of the first n layers can be mounted.
func TestPullThroughSnapshotter(t *testing.T) {
	for version, opts := range versions(t) {
		for n := range 3 {
			t.Run(fmt.Sprintf("%s/%d layers remote", version, n), func(t *testing.T) {
				src := push(t)
				images := &trees{dirs: unpacked(t, src.ref, n)}
				s, socket := serveSnapshots(t, images)
				opts := opts
				opts.Snapshotter, opts.Registries = socket, []string{src.host}
				d := start(t, opts)
				before := src.downloads()
				img := pull(t, d, src.ref)
				if got, want := src.downloads()-before, 1+2-n; got != want {
					t.Errorf("%d blobs were downloaded, want the config and %d layers", got, 2-n)
				}
				checkRequests(t, images.asked(), src.ref, img.Target().Digest.String())
				want := "hello from inside\nlayer 2\n"
				if n > 0 {
					want = "hello from inside\non a tree\nlayer 2\n"
				}
				out := run(t, d.Ctr(t.Context(), "run", "--rm", "--snapshotter", "xylem", src.ref, filepath.Base(d.Dir), "/bin/program", "inside"))
				if out != want {
					t.Errorf("container printed %q, want %q", out, want)
				}
				checkCollected(t, d, s, images, src.ref)
			})
		}
	}
}

// checkRequests: both layers were offered, with all that the client knows.
func checkRequests(t *testing.T, asked []snapshotter.Request, ref, manifest string) {
	t.Helper()
	if len(asked) != 2 {
		t.Fatalf("%d layers were offered, want 2", len(asked))
	}
	for _, r := range asked {
		if r.Ref != ref || r.Manifest.String() != manifest || r.ChainID == "" || r.Labels[snapshotters.TargetLayerDigestLabel] == "" {
			t.Errorf("offered: %+v", r)
		}
	}
}

// checkCollected removes the image: containerd's garbage collection has to leave nothing behind.
func checkCollected(t *testing.T, d *Daemon, s *snapshotter.Snapshotter, images *trees, ref string) {
	t.Helper()
	run(t, d.Ctr(t.Context(), "image", "rm", "--sync", ref))
	err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		return fmt.Errorf("snapshot %q is left", info.Name)
	})
	if err != nil {
		t.Error(err)
	}
	images.mu.Lock()
	defer images.mu.Unlock()
	if images.mounted != 0 {
		t.Errorf("%d trees are still mounted", images.mounted)
	}
}

// TestCtrPull: ctr 1.x offers nothing, so its images are unpacked; ctr 2.x does.
func TestCtrPull(t *testing.T) {
	for version, opts := range versions(t) {
		t.Run(version, func(t *testing.T) {
			src := push(t)
			images := &trees{dirs: unpacked(t, src.ref, 2)}
			_, socket := serveSnapshots(t, images)
			opts.Snapshotter, opts.Registries = socket, []string{src.host}
			d := start(t, opts)
			run(t, d.Ctr(t.Context(), "image", "pull", "--snapshotter", "xylem", "--plain-http", src.ref))
			out := run(t, d.Ctr(t.Context(), "run", "--rm", "--snapshotter", "xylem", src.ref, filepath.Base(d.Dir), "/bin/program", "inside"))
			if lazy := strings.Contains(out, "on a tree"); lazy != (d.Major > 1) {
				t.Errorf("container printed %q", out)
			}
			if d.Major > 1 {
				checkRequests(t, images.asked(), src.ref, images.asked()[0].Manifest.String())
			}
		})
	}
}

// TestCommitContainer takes what a container changed on top of a tree as a layer, as image commits do. The directories at
// the root are mount points that runc made.
func TestCommitContainer(t *testing.T) {
	for version, opts := range versions(t) {
		t.Run(version, func(t *testing.T) {
			src := push(t)
			_, socket := serveSnapshots(t, &trees{dirs: unpacked(t, src.ref, 2)})
			opts.Snapshotter, opts.Registries = socket, []string{src.host}
			d := start(t, opts)
			pull(t, d, src.ref)
			id := filepath.Base(d.Dir)
			run(t, d.Ctr(t.Context(), "run", "--snapshotter", "xylem", src.ref, id, "/bin/program", "write"))
			ctx, c := connect(t, d)
			ctx, done, err := c.WithLease(ctx) // or containerd collects the layer as garbage
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := done(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
				}
			}()
			layer, err := rootfs.CreateDiff(ctx, id, c.SnapshotService("xylem"), c.DiffService())
			if err != nil {
				t.Fatal(err)
			}
			blob, err := content.ReadBlob(ctx, c.ContentStore(), layer)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "tar", "-tz")
			cmd.Stdin = bytes.NewReader(blob)
			if out := run(t, cmd); out != "dev/\netc/\netc/.wh.layer\netc/written\nproc/\nrun/\nsys/\n" {
				t.Errorf("the layer of changes has %q", out)
			}
		})
	}
}

// TestCRIPull pulls as kubelets do: the request has to say what is pulled.
func TestCRIPull(t *testing.T) {
	for version, opts := range versions(t) {
		t.Run(version, func(t *testing.T) {
			src := push(t)
			images := &trees{dirs: unpacked(t, src.ref, 2)}
			_, socket := serveSnapshots(t, images)
			opts.Snapshotter, opts.Registries, opts.CRI = socket, []string{src.host}, true
			d := start(t, opts)
			_, c := connect(t, d)
			before := src.downloads()
			_, err := cri.NewImageServiceClient(c.Conn().(grpc.ClientConnInterface)).PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: src.ref}})
			if err != nil {
				t.Fatal(err)
			}
			if got := src.downloads() - before; got != 1 {
				t.Errorf("%d blobs were downloaded, want the config only", got)
			}
			asked := images.asked()
			checkRequests(t, asked, src.ref, asked[0].Manifest.String())
		})
	}
}
