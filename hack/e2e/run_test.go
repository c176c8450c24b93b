package e2e

import (
	"strings"
	"testing"

	"github.com/xylem-project/xylem/hack/nodelab"
)

// TestXylemRun starts a container from the block image, twice, with each containerd.
func TestXylemRun(t *testing.T) {
	lab := startLab(t)
	ref := pushed(t.Context(), t, lab, "hello:1", helloImage(t), true)
	for name, config := range containerds {
		t.Run(name, func(t *testing.T) {
			node := startNode(t, lab, config(t))
			for range 2 {
				if _, line, err := node.Run(t.Context(), nodelab.Xylem, ref); err != nil || line != greeting {
					t.Fatalf("printed %q, %v", line, err)
				}
			}
			must(t, node.Mounted(t.Context(), ref))
			if layers := layersDownloaded(t, node); layers != 0 {
				t.Errorf("%d layers were downloaded", layers)
			}
		})
	}
}

// TestUnconverted starts an image without a block image: it is unpacked as ever.
func TestUnconverted(t *testing.T) {
	lab := startLab(t)
	ref := pushed(t.Context(), t, lab, "hello:1", helloImage(t), false)
	for name, config := range containerds {
		t.Run(name, func(t *testing.T) {
			node := startNode(t, lab, config(t))
			if _, line, err := node.Run(t.Context(), nodelab.Xylem, ref); err != nil || line != greeting {
				t.Fatalf("printed %q, %v", line, err)
			}
			if layers := layersDownloaded(t, node); layers != 2 {
				t.Errorf("%d layers were downloaded, want 2", layers)
			}
		})
	}
}

// TestConvertedByItsFirstPull starts an image without a block image where pulls wait for one: the node makes it, and nothing is unpacked.
func TestConvertedByItsFirstPull(t *testing.T) {
	lab := startLab(t)
	ref := pushed(t.Context(), t, lab, "hello:1", helloImage(t), false)
	for name, config := range containerds {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			cfg.AgentConfig += "convert = \"wait\"\nconvert_wait = \"1m\"\n"
			node := startNode(t, lab, cfg)
			if _, line, err := node.Run(t.Context(), nodelab.Xylem, ref); err != nil || line != greeting {
				t.Fatalf("printed %q, %v", line, err)
			}
			must(t, node.Mounted(t.Context(), ref))
			if layers := layersDownloaded(t, node); layers != 0 {
				t.Errorf("%d layers were downloaded", layers)
			}
		})
	}
}

// TestPlainCtr uses nothing of ours but the snapshotter. ctr 1.6 does not offer layers to it, so it unpacks them.
func TestPlainCtr(t *testing.T) {
	lab := startLab(t)
	ref := pushed(t.Context(), t, lab, "hello:1", helloImage(t), true)
	for name, config := range containerds {
		t.Run(name, func(t *testing.T) {
			node := startNode(t, lab, config(t))
			pull := []string{"image", "pull", "--snapshotter", "xylem", "--hosts-dir", node.Containerd.HostsDir(), ref}
			if node.Containerd.Major >= 2 {
				pull = []string{"image", "pull", "--snapshotter", "xylem", ref} // the daemon pulls, with its own configuration
			}
			ctr(t, node, pull...)
			out := ctr(t, node, "run", "--rm", "--snapshotter", "xylem", ref, "plain-"+strings.ReplaceAll(name, ".", "-"))
			if strings.TrimSpace(out) != greeting {
				t.Errorf("printed %q", out)
			}
			if node.Containerd.Major >= 2 {
				must(t, node.Mounted(t.Context(), ref))
			}
		})
	}
}

func ctr(t *testing.T, node *nodelab.Node, args ...string) string {
	t.Helper()
	cmd := node.Containerd.Ctr(t.Context(), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s\nagent:\n%s", cmd.Args, err, out, stderr.String(), node.AgentLogTail())
	}
	return string(out)
}

// layersDownloaded counts the layers in containerd's content store.
func layersDownloaded(t *testing.T, node *nodelab.Node) int {
	t.Helper()
	return strings.Count(ctr(t, node, "content", "ls"), "containerd.io/uncompressed=")
}
