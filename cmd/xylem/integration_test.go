package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/hack/containerdtest"
)

// program is what the test's containers run.
const program = `package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	switch os.Args[1] {
	case "print":
		fmt.Println("out", os.Args[2:], os.Getenv("GREETING"))
		fmt.Fprintln(os.Stderr, "err")
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "file":
		data, err := os.ReadFile(os.Args[2])
		if err != nil {
			panic(err)
		}
		fmt.Println(len(data), string(data[:5]))
	case "wait":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("ready")
		<-term
		os.Exit(3)
	}
}
`

// checkRun goes through what `xylem run` promises.
func checkRun(t *testing.T, n *node, snapshotter string) {
	t.Helper()
	tests := []struct {
		name, stdin string
		args        []string
		want        result
	}{
		{"output", "", []string{"--env", "GREETING=hello", n.ref, "print", "a", "--b"}, result{0, "out [a --b] hello\n", "err\n"}},
		{"exit code", "", []string{n.ref, "exit", "7"}, result{7, "", ""}},
		{"stdin", "through the container", []string{n.ref, "cat"}, result{0, "through the container", ""}},
		{"file", "", []string{n.ref, "file", "/etc/data"}, result{0, "1500000 data\n\n", ""}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := n.run(t, snapshotter, test.stdin, test.args...)
			got.stderr = withoutLog(got.stderr)
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// withoutLog drops the log lines, which are JSON objects.
func withoutLog(stderr string) (rest string) {
	for line := range strings.Lines(stderr) {
		if !json.Valid([]byte(line)) {
			rest += line
		}
	}
	return rest
}

// left returns what containerd still has of containers and their snapshots.
func (n *node) left(t *testing.T, snapshotter string) string {
	t.Helper()
	var out strings.Builder
	for _, args := range [][]string{{"containers", "ls", "-q"}, {"tasks", "ls", "-q"}, {"snapshots", "--snapshotter", snapshotter, "ls"}} {
		cmd := exec.CommandContext(t.Context(), "ctr", append([]string{"--address", n.address}, args...)...)
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", cmd.Args, err, text)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "Committed") && !strings.HasPrefix(line, "KEY") {
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

func TestRunWithOverlayfs(t *testing.T) {
	n := startNode(t, containerdtest.Options{}, false)
	checkRun(t, n, "overlayfs")
	if left := n.left(t, "overlayfs"); left != "" {
		t.Errorf("containerd still has %q", left)
	}
	t.Run("failures", func(t *testing.T) {
		n.run(t, "overlayfs", "", strings.Replace(n.ref, ":1", ":2", 1)).checkFailed(t, 1, ":2", "not found", "check the image's name")
		n.run(t, "missing", "", n.ref).checkFailed(t, 1, "missing", "xylem doctor")
		n.run(t, "overlayfs", "", "--pull", "never", "127.0.0.1:1/x").checkFailed(t, 1, "127.0.0.1:1/x", "pull")
		n.run(t, "overlayfs", "", "--entrypoint", "/no/such/program", n.ref).checkFailed(t, 1, "/no/such/program")
		n.run(t, "overlayfs", "", "Not A Name").checkFailed(t, 2, "Not A Name")
		if left := n.left(t, "overlayfs"); left != "" {
			t.Errorf("containerd still has %q", left)
		}
	})
	t.Run("kept", func(t *testing.T) {
		if r := n.run(t, "overlayfs", "", "--rm=false", "--name", "kept", n.ref, "exit", "0"); r.code != 0 {
			t.Errorf("got %+v", r)
		}
		if left := n.left(t, "overlayfs"); !strings.Contains(left, "kept\n") {
			t.Errorf("containerd has %q", left)
		}
	})
}

// An interrupt reaches the container's process, whose exit code is passed on, and nothing is left.
func TestRunInterrupted(t *testing.T) {
	n := startNode(t, containerdtest.Options{}, false)
	cmd := xylem(t.Context(), t, n.args("run", "--address", n.address, "--snapshotter", "overlayfs", n.ref, "wait")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("exit code %d, want 3 (stderr %q)", code, stderr.String())
	}
	if left := n.left(t, "overlayfs"); left != "" {
		t.Errorf("containerd still has %q", left)
	}
}

// containerd 2.x answers the same client.
func TestRunWithContainerd2(t *testing.T) {
	options, err := containerdtest.Build(t.Context(), "../../hack/cache")
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, options, true)
	if r := do(t, n.args("convert", n.ref, "--push")...); r.code != 0 {
		t.Fatalf("got %+v", r)
	}
	for _, snapshotter := range []string{"overlayfs", "xylem"} {
		checkRun(t, n, snapshotter)
		if left := n.left(t, snapshotter); left != "" {
			t.Errorf("containerd still has %q", left)
		}
	}
	var images []agent.ImageInfo
	if n.json(t, &images, "images"); len(images) != 1 {
		t.Errorf("the agent has %+v", images)
	}
}

func TestPullPrintsJSON(t *testing.T) {
	n := startNode(t, containerdtest.Options{}, false)
	r := do(t, n.args("pull", "--address", n.address, "--snapshotter", "overlayfs", "--output", "json", n.ref)...)
	var p pulled
	if err := json.Unmarshal([]byte(r.out), &p); err != nil || r.code != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if p.Name != n.ref || !strings.HasPrefix(p.Digest, "sha256:") || p.Snapshotter != "overlayfs" {
		t.Errorf("got %+v", p)
	}
}

// The whole way: convert, find, run, look, mount, tidy.
func TestLazily(t *testing.T) {
	n := startNode(t, containerdtest.Options{}, true)
	n.checkConvert(t)
	n.checkInspect(t)
	checkRun(t, n, "xylem")
	if left := n.left(t, "xylem"); left != "" {
		t.Errorf("containerd still has %q", left)
	}
	n.checkNothingUnpacked(t)
	n.checkRecord(t)
	n.checkMount(t)
	n.checkCache(t)
	n.checkDoctor(t)
}

// json runs a command with --output json and decodes what it prints.
func (n *node) json(t *testing.T, v any, args ...string) {
	t.Helper()
	r := do(t, n.args(append(args, "--output", "json")...)...)
	if err := json.Unmarshal([]byte(r.out), v); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v, %v", args, r, err)
	}
}

func (n *node) checkConvert(t *testing.T) {
	t.Helper()
	do(t, n.args("inspect", n.ref)...).checkFailed(t, 1, n.ref, "no block image", "xylem convert "+n.ref+" --push")
	var first, second converted
	n.json(t, &first, "convert", n.ref, "--push")
	if len(first.Stats.Layers) != 2 || first.Stats.Converted != 2 || first.Pushed != n.ref {
		t.Errorf("first conversion: %+v", first)
	}
	out := filepath.Join(t.TempDir(), "layout")
	n.json(t, &second, "convert", n.ref, "--out", out, "--tag", "block")
	if second.Image != first.Image || second.Stats.Converted != 0 {
		t.Errorf("second conversion: %+v, want image %s from the cache", second, first.Image)
	}
	var in inspection
	n.json(t, &in, "inspect", "oci:"+out+":block")
	if in.Image.String() != first.Image || in.Signature != "trusted" {
		t.Errorf("in the layout: %+v", in)
	}
}

func (n *node) checkInspect(t *testing.T) {
	t.Helper()
	var in inspection
	n.json(t, &in, "inspect", n.ref)
	if len(in.Layers) != 2 || in.Signature != "trusted" || in.Blocks == 0 || in.RawSize == 0 || in.StoredSize == 0 || in.Recorded {
		t.Errorf("got %+v", in)
	}
	// An agent with another key and root does not trust it.
	var elsewhere inspection
	other := &node{root: filepath.Join(t.TempDir(), "root"), state: n.state}
	other.json(t, &elsewhere, "inspect", n.ref)
	if elsewhere.Image != in.Image || elsewhere.Signature != "untrusted" {
		t.Errorf("elsewhere: %+v", elsewhere)
	}
	if r := do(t, n.args("inspect", n.ref)...); r.code != 0 || !strings.Contains(r.out, in.Image.String()) {
		t.Errorf("got %+v", r)
	}
}

// checkNothingUnpacked: the agent has the image, and containerd no content of its layers.
func (n *node) checkNothingUnpacked(t *testing.T) {
	t.Helper()
	var images []agent.ImageInfo
	n.json(t, &images, "images")
	if len(images) != 1 || images[0].Ref != n.ref || images[0].Layers != 2 {
		t.Fatalf("got %+v", images)
	}
	out, err := exec.CommandContext(t.Context(), "ctr", "--address", n.address, "content", "ls").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if lines := strings.Count(string(out), "\nsha256:"); lines != 2 { // manifest and config
		t.Errorf("containerd downloaded more than manifest and config:\n%s", out)
	}
}

// checkRecord records a run and converts with the profile.
func (n *node) checkRecord(t *testing.T) {
	t.Helper()
	if r := do(t, n.args("record", "start", "--address", n.address, n.ref)...); r.code != 0 {
		t.Fatalf("got %+v", r)
	}
	if r := n.run(t, "xylem", "", n.ref, "file", "/etc/data"); r.code != 0 {
		t.Fatalf("got %+v", r)
	}
	profile := filepath.Join(t.TempDir(), "profile")
	if r := do(t, n.args("record", "stop", n.ref, "--file", profile)...); r.code != 0 {
		t.Fatalf("got %+v", r)
	}
	text, err := os.ReadFile(profile)
	if err != nil || !strings.Contains(string(text), `"etc/data"`) || !strings.Contains(string(text), `"bin/program"`) {
		t.Fatalf("profile %q, %v", text, err)
	}
	var c converted
	n.json(t, &c, "convert", n.ref, "--push", "--profile", profile)
	var in inspection
	n.json(t, &in, "inspect", n.ref)
	if in.Image.String() != c.Image || !in.Recorded || in.Layers[0].StartupBlocks == 0 || in.Layers[1].StartupBlocks == 0 {
		t.Errorf("with a profile: %+v", in)
	}
}

func (n *node) checkMount(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := containerdtest.UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	var mounted agent.MountResult
	n.json(t, &mounted, "mount", n.ref, dir)
	if mounted.Dir != dir {
		t.Errorf("got %+v", mounted)
	}
	out, err := exec.CommandContext(t.Context(), "cat", filepath.Join(dir, "etc/data")).Output()
	if err != nil || string(out) != strings.Repeat("data\n", 300_000) {
		t.Errorf("read %d bytes, %v", len(out), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err == nil {
		t.Error("the mount is writable")
	}
	do(t, n.args("mount", n.ref, dir)...).checkFailed(t, 1, dir, "already")
	if r := do(t, n.args("unmount", dir)...); r.code != 0 {
		t.Errorf("got %+v", r)
	}
	do(t, n.args("unmount", dir)...).checkFailed(t, 1, dir)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("after unmount: %v, %v", entries, err)
	}
}

func (n *node) checkCache(t *testing.T) {
	t.Helper()
	var blobs []cache.BlobInfo
	n.json(t, &blobs, "cache", "ls")
	if len(blobs) < 2 {
		t.Errorf("got %+v", blobs)
	}
	var scrubbed cache.ScrubReport
	n.json(t, &scrubbed, "cache", "scrub")
	if scrubbed.Blocks+scrubbed.Data == 0 || scrubbed.BadBlocks+scrubbed.BadData != 0 {
		t.Errorf("got %+v", scrubbed)
	}
	var freed agent.GCResult
	n.json(t, &freed, "cache", "gc")
	for _, args := range [][]string{{"cache", "ls"}, {"cache", "scrub"}, {"cache", "gc"}, {"images"}} {
		if r := do(t, n.args(args...)...); r.code != 0 || r.out == "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// checkDoctor: on this node everything works.
func (n *node) checkDoctor(t *testing.T) {
	t.Helper()
	var findings []finding
	n.json(t, &findings, "doctor", "--address", n.address, "--containerd-config", filepath.Join(filepath.Dir(n.address), "config.toml"))
	for _, check := range []string{"agent", "containerd.sock", "snapshotter", "proxy_plugins", "mount way"} {
		checkFinding(t, findings, check, statusOK)
	}
}
