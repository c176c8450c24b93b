package e2e

import (
	"context"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/nodelab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const cache = "../cache"

// must is for steps that are not what a test is about.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startLab starts a registry and removes everything after the test.
func startLab(t *testing.T) *nodelab.Lab {
	t.Helper()
	xylem := os.Getenv("XYLEM")
	if xylem == "" {
		xylem = "../../bin/xylem"
	}
	lab, err := nodelab.Start(t.Context(), nodelab.Config{Xylem: xylem, Log: t.Output()})
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	return lab
}

// startNode starts containerd and an agent for the test.
func startNode(t *testing.T, lab *nodelab.Lab, cfg nodelab.NodeConfig) *nodelab.Node {
	t.Helper()
	cfg.Xylem = true
	node, err := lab.Node(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node
}

// containerds are the releases that the tests cover.
var containerds = map[string]func(t *testing.T) nodelab.NodeConfig{
	"debian": func(*testing.T) nodelab.NodeConfig { return nodelab.NodeConfig{} },
	"2.4": func(t *testing.T) nodelab.NodeConfig {
		built, err := containerdtest.Build(t.Context(), cache)
		must(t, err)
		return nodelab.NodeConfig{Containerd: built.Binary, Ctr: built.Ctr}
	},
}

const helloSource = `package main

import (
	"fmt"
	"os"
)

func main() {
	text, err := os.ReadFile("/etc/greeting")
	fmt.Print("ready ", string(text))
	if err != nil {
		os.Exit(1)
	}
}
`

// pauseSource is a sandbox's process: it waits to be told to end.
const pauseSource = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	<-c
}
`

// greeting is what the hello image prints.
const greeting = "ready hello from the upper layer"

// helloImage has two layers, the upper of which replaces a file of the lower.
func helloImage(t *testing.T) v1.Image {
	t.Helper()
	image, err := containerdtest.Image([]string{"/bin/hello"},
		map[string][]byte{"bin/hello": program(t, helloSource), "etc/greeting": []byte("hello from the lower layer\n")},
		map[string][]byte{"etc/greeting": []byte("hello from the upper layer\n")})
	must(t, err)
	return image
}

func pauseImage(t *testing.T) v1.Image {
	t.Helper()
	image, err := containerdtest.Image([]string{"/pause"}, map[string][]byte{"pause": program(t, pauseSource)})
	must(t, err)
	return image
}

func program(t *testing.T, source string) []byte {
	t.Helper()
	path, err := containerdtest.BuildProgram(t.Context(), t.TempDir(), source)
	must(t, err)
	binary, err := os.ReadFile(path)
	must(t, err)
	return binary
}

// pushed puts an image into the lab's registry and, if wanted, its block image beside it.
func pushed(ctx context.Context, t *testing.T, lab *nodelab.Lab, name string, image v1.Image, converted bool) string {
	t.Helper()
	ref, err := lab.Push(ctx, name, image)
	must(t, err)
	if converted {
		_, err := lab.Convert(ctx, ref, "--push")
		must(t, err)
	}
	return ref
}
