package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/hack/demoimage"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/hack/treecmp"
)

// ways to mount; see fuse/erofs.
var ways = []string{"file", "loop", "tree"}

// TestDemoTree compares the demo image as it is mounted from its block image with what containerd unpacks for overlayfs.
func TestDemoTree(t *testing.T) {
	lab := startLab(t)
	built, err := demoimage.Build(t.Context(), cache, t.Output())
	must(t, err)
	image, err := built.Image()
	must(t, err)
	compareTrees(t, lab, pushed(t.Context(), t, lab, "demo:1", image, true), image, nil)
}

// TestTortureTree does it for an image of everything that is hard to get right.
func TestTortureTree(t *testing.T) {
	lab := startLab(t)
	image := tortureImage(t)
	// Overlayfs shows the link count of the lower file system, also when layers above hide the other names. The times of
	// implied directories are those of unpacking.
	ignore := func(path, property string) bool {
		return property == "mtime" && blocktest.TortureImplied(path) || path == "linked/a" && property == "link count"
	}
	compareTrees(t, lab, pushed(t.Context(), t, lab, "torture:1", image, true), image, ignore)
}

func tortureImage(t *testing.T) v1.Image {
	t.Helper()
	image := empty.Image
	for _, l := range blocktest.TortureLayers() {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() { w.CloseWithError(l.Write(w)) }()
			return r, nil
		})
		must(t, err)
		image, err = mutate.AppendLayers(image, layer)
		must(t, err)
	}
	config, err := image.ConfigFile()
	must(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	image, err = mutate.ConfigFile(image, config)
	must(t, err)
	return image
}

// compareTrees compares every prefix of the image's layers in every mount way; the content of files only for the whole
// image, because that of a prefix is in the whole or hidden by it.
func compareTrees(t *testing.T, lab *nodelab.Lab, ref string, image v1.Image, ignore func(path, property string) bool) {
	chains := chainIDs(t, image)
	reference, err := lab.Node(t.Context(), nodelab.NodeConfig{})
	must(t, err)
	t.Cleanup(func() { must(t, reference.Close()) })
	pull(t, reference, nodelab.Overlayfs, ref)
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			node := startNode(t, lab, nodelab.NodeConfig{AgentConfig: fmt.Sprintf("mount_way = %q", way)})
			pull(t, node, nodelab.Xylem, ref)
			must(t, node.Mounted(t.Context(), ref))
			for i, chain := range chains {
				t.Run(fmt.Sprintf("layers-%d", i+1), func(t *testing.T) {
					want := view(t, reference, nodelab.Overlayfs, chain)
					got := view(t, node, nodelab.Xylem, chain)
					options := treecmp.Options{MetadataOnly: i+1 < len(chains), Ignore: ignore}
					differences, err := treecmp.Compare(t.Context(), want, got, options)
					must(t, err)
					for _, d := range differences {
						t.Error(d)
					}
				})
			}
		})
	}
}

func chainIDs(t *testing.T, image v1.Image) []digest.Digest {
	t.Helper()
	config, err := image.ConfigFile()
	must(t, err)
	var diffIDs []digest.Digest
	for _, d := range config.RootFS.DiffIDs {
		diffIDs = append(diffIDs, digest.Digest(d.String()))
	}
	return identity.ChainIDs(diffIDs)
}

func pull(t *testing.T, node *nodelab.Node, snapshotter, ref string) {
	t.Helper()
	must(t, node.Pull(t.Context(), snapshotter, ref))
}

// view mounts a committed snapshot read-only and returns where, for the time of the test.
func view(t *testing.T, node *nodelab.Node, snapshotter string, chain digest.Digest) string {
	t.Helper()
	client, err := containerd.New(node.Containerd.Address)
	must(t, err)
	ctx := namespaces.WithNamespace(context.WithoutCancel(t.Context()), namespaces.Default)
	service := client.SnapshotService(snapshotter)
	key, dir := "view-"+chain.Encoded(), filepath.Join(t.TempDir(), "view")
	must(t, os.Mkdir(dir, 0o755))
	mounts, err := service.View(ctx, key, chain.String())
	must(t, err)
	t.Cleanup(func() {
		must(t, mount.UnmountAll(dir, 0))
		must(t, service.Remove(ctx, key))
		must(t, client.Close())
	})
	must(t, mount.All(mounts, dir))
	return dir
}
