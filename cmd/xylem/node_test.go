package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/hack/containerdtest"
)

// node is a machine with a registry, an agent and a containerd.
type node struct {
	root, state string
	ref         string // image in the registry
	address     string // of containerd
}

// args puts the node's directories before a command line.
func (n *node) args(args ...string) []string {
	return append([]string{"--root", n.root, "--state", n.state}, args...)
}

// shortDir makes a directory whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "xyl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// pushImage serves a registry, with or without the referrers API, and with the test's image, whose reference it returns.
func pushImage(t *testing.T, referrers bool) string {
	t.Helper()
	path, err := containerdtest.BuildProgram(t.Context(), t.TempDir(), program)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	image, err := containerdtest.Image([]string{"/bin/program"},
		map[string][]byte{"bin/program": binary},
		map[string][]byte{"etc/data": []byte(strings.Repeat("data\n", 300_000))})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(referrers)))
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/test/image:1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		t.Fatal(err)
	}
	return ref
}

// startNode starts containerd and, with lazy, an agent that it knows as the snapshotter xylem.
func startNode(t *testing.T, options containerdtest.Options, lazy bool) *node {
	t.Helper()
	dir := shortDir(t)
	n := &node{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), ref: pushImage(t, options.Binary != "")}
	if lazy {
		n.startAgent(t)
		options.Snapshotter = filepath.Join(n.state, "agent.sock")
	}
	options.Dir = filepath.Join(dir, "ctrd")
	options.Registries = []string{strings.Split(n.ref, "/")[0]}
	d, err := containerdtest.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	n.address = d.Address
	return n
}

// startAgent runs an agent in a process of its own, waits until it is ready, and stops it with the test.
func (n *node) startAgent(t *testing.T) {
	t.Helper()
	stderr, err := os.Create(filepath.Join(t.TempDir(), "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := xylem(context.Background(), t, n.args("agent", "--admin", "", "--proxy", "")...)
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		if err := stopProcess(cmd, exited); err != nil {
			text, _ := os.ReadFile(stderr.Name())
			t.Errorf("agent: %v\n%s", err, text)
		}
		if err := containerdtest.UnmountBelow(n.state); err != nil {
			t.Error(err)
		}
	})
	deadline := time.After(30 * time.Second)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		if _, err := agent.NewClient(filepath.Join(n.state, "admin.sock")).Images(t.Context()); err == nil {
			return
		}
		select {
		case <-poll.C:
		case err := <-exited:
			exited <- err
			text, _ := os.ReadFile(stderr.Name())
			t.Fatalf("agent ended: %v\n%s", err, text)
		case <-deadline:
			t.Fatal("the agent is not ready after 30 s")
		}
	}
}

func stopProcess(cmd *exec.Cmd, exited <-chan error) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && err != os.ErrProcessDone {
		return err
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(30 * time.Second):
		return fmt.Errorf("ignored SIGTERM for 30 s: %w", cmd.Process.Kill())
	}
}

// run runs a container of the node's image.
func (n *node) run(t *testing.T, snapshotter, stdin string, args ...string) result {
	t.Helper()
	args = append(n.args("run", "--address", n.address, "--snapshotter", snapshotter), args...)
	return doWith(t.Context(), t, stdin, args...)
}
