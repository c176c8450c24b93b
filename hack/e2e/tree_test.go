package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
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
	compareTrees(t, lab, pushed(t.Context(), t, lab, "demo:1", image, true), image, func(string, string) bool { return false })
}

// TestTortureTree does it for an image of everything that is hard to get right.
func TestTortureTree(t *testing.T) {
	lab := startLab(t)
	image := tortureImage(t)
	ignore := func(path, property string) bool {
		switch property {
		case "mtime":
			return blocktest.TortureImplied(path)
		case "link count": // overlayfs shows that of the lower file system, also when layers above hide the other names
			return path == "linked/a"
		case "content": // its five gibibytes are checked without a copy to compare with
			return path == blocktest.TortureSparse
		}
		return false
	}
	compareTrees(t, lab, pushed(t.Context(), t, lab, "torture:1", image, true), image, ignore)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// checkSparse reads the torture image's sparse file: its data, and what lies around them.
func checkSparse(t *testing.T, path string) {
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	data := []byte(blocktest.TortureSparseData)
	const around = 1 << 20
	for _, off := range blocktest.TortureSparseOffsets {
		from := max(0, off-around)
		to := min(blocktest.TortureSparseSize, off+int64(len(data))+around)
		want := make([]byte, to-from)
		copy(want[off-from:], data)
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, from); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: bytes %d to %d are not the data at %d between zeros: %v", path, from, to, off, err)
		}
	}
	zeros, got := make([]byte, around), make([]byte, around)
	for off := int64(64 << 20); off < 1<<32-2*around; off += 512 << 20 {
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, zeros) {
			t.Errorf("%s: no zeros at %d: %v", path, off, err)
		}
	}
}

func tortureImage(t *testing.T) v1.Image {
	t.Helper()
	image := empty.Image
	for _, l := range blocktest.TortureLayers() {
		var err error
		image, err = mutate.AppendLayers(image, newFileLayer(t, l))
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
	implied := impliedDirs(t, image)
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
					want := view(t, lab, reference, nodelab.Overlayfs, chain)
					got := view(t, lab, node, nodelab.Xylem, chain)
					options := treecmp.Options{MetadataOnly: i+1 < len(chains), Ignore: func(path, property string) bool {
						return property == "mtime" && implied[i][path] || ignore(path, property)
					}}
					differences, err := treecmp.Compare(t.Context(), want, got, options)
					must(t, err)
					for _, d := range differences {
						t.Error(d)
					}
					if sparse := filepath.Join(got, blocktest.TortureSparse); exists(sparse) {
						checkSparse(t, sparse)
					}
				})
			}
		})
	}
}

// impliedDirs returns, for each prefix of the layers, the directories that the last layer to touch them contains only as the
// parent of something else. containerd gives them the time of unpacking.
func impliedDirs(t *testing.T, image v1.Image) []map[string]bool {
	t.Helper()
	layers, err := image.Layers()
	must(t, err)
	implied := map[string]bool{}
	var prefixes []map[string]bool
	for _, l := range layers {
		r, err := l.Uncompressed()
		must(t, err)
		explicit := map[string]bool{}
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
			explicit[name] = true
			for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
				implied[dir] = true
			}
		}
		must(t, r.Close())
		maps.DeleteFunc(implied, func(dir string, _ bool) bool { return explicit[dir] })
		prefixes = append(prefixes, maps.Clone(implied))
	}
	return prefixes
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
func view(t *testing.T, lab *nodelab.Lab, node *nodelab.Node, snapshotter string, chain digest.Digest) string {
	t.Helper()
	client, err := containerd.New(node.Containerd.Address)
	must(t, err)
	ctx := namespaces.WithNamespace(context.WithoutCancel(t.Context()), namespaces.Default)
	service := client.SnapshotService(snapshotter)
	key := "view-" + chain.Encoded()
	dir, err := os.MkdirTemp(lab.Path(""), "view-") // there it is found if this test is killed
	must(t, err)
	mounts, err := service.View(ctx, key, chain.String(), snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	must(t, err)
	t.Cleanup(func() {
		must(t, mount.UnmountAll(dir, 0))
		must(t, service.Remove(ctx, key))
		must(t, client.Close())
	})
	must(t, mount.All(mounts, dir))
	return dir
}
