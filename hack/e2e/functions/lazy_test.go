package functions

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// containerds are the releases that functions run on.
var containerds = map[string]func(t *testing.T) nodelab.NodeConfig{
	"debian": func(*testing.T) nodelab.NodeConfig { return nodelab.NodeConfig{} },
	"2.4": func(t *testing.T) nodelab.NodeConfig {
		built, err := containerdtest.Build(t.Context(), "../../cache")
		must(t, err)
		return nodelab.NodeConfig{Containerd: built.Binary, Ctr: built.Ctr}
	},
}

// lazyWorld is a world whose containerd has the snapshotter of an agent.
func lazyWorld(t *testing.T, lab *nodelab.Lab, cfg nodelab.NodeConfig) (*world, *nodelab.Node) {
	t.Helper()
	cfg.Xylem = true
	node, err := lab.Node(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, node.Close()) })
	w := &world{t: t, dir: shortDir(t), daemon: node.Containerd, registry: lab.Host()}
	w.config = w.executorConfig("xylem")
	t.Cleanup(func() { must(t, containerdtest.RemoveNamespace(w.config.Namespace)) })
	w.run()
	t.Cleanup(func() { w.stop() })
	return w, node
}

// TestLazyMount runs functions from block images, of which no layer is downloaded, as a user who is found by name in the image.
func TestLazyMount(t *testing.T) {
	xylem := os.Getenv("XYLEM")
	if xylem == "" {
		xylem = "../../../bin/xylem"
	}
	lab, err := nodelab.Start(t.Context(), nodelab.Config{Xylem: xylem, Log: t.Output()})
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	program, err := programs[api.ContractLambda]()
	must(t, err)
	image, err := containerdtest.Image([]string{"/bin/fn"}, map[string][]byte{"bin/fn": program},
		map[string][]byte{"etc/passwd": []byte("root:x:0:0::/:\nweb:x:33:34::/:\n"), "etc/group": []byte("www:x:34:\n")})
	must(t, err)
	config, err := image.ConfigFile()
	must(t, err)
	config = config.DeepCopy()
	config.Config.User = "web"
	image, err = mutate.ConfigFile(image, config)
	must(t, err)
	for name, config := range containerds {
		t.Run(name, func(t *testing.T) {
			w, node := lazyWorld(t, lab, config(t))
			fn := w.functionOf(api.ContractLambda, image, nil)
			_, err := lab.Convert(t.Context(), fn.Image, "--push")
			must(t, err)
			for _, id := range []string{"a", "b"} {
				w.instance(id, fn)
				if s := w.ask(id, `{"do":"user"}`); s.Text != "33:34" {
					t.Errorf("runs as %s", s.Text)
				}
			}
			must(t, node.Mounted(t.Context(), strings.Split(fn.Image, ":1")[0]))
			out, err := w.daemon.Ctr(t.Context(), "-n", w.config.Namespace, "content", "ls").Output()
			must(t, err)
			if n := strings.Count(string(out), "containerd.io/uncompressed="); n > 0 {
				t.Errorf("%d layers were downloaded", n)
			}
			w.delete("a")
			w.stop()
			if left := w.left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}
