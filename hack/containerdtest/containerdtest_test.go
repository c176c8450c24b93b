package containerdtest

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// program prints what the test looks for, then waits until it is killed if told so.
const program = `package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("hello from", os.Args[1])
	if os.Args[1] == "forever" {
		select {}
	}
}
`

// start runs a daemon that is stopped with the test. Its directory has a short path because of the sockets in it.
func start(t *testing.T, opts Options) *Daemon {
	t.Helper()
	if opts.Dir == "" {
		dir, err := os.MkdirTemp("", "ctrd")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		opts.Dir = dir
	}
	d, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, out, stderr.String())
	}
	return string(out)
}

// push puts the program's image into a registry on loopback and returns its host and reference.
func push(t *testing.T) (host, ref string) {
	t.Helper()
	path, err := BuildProgram(t.Context(), t.TempDir(), program)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Image([]string{"/bin/program"}, map[string][]byte{"bin/program": binary}, map[string][]byte{"etc/layer": []byte("2")})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "http://")
	ref = host + "/hello:1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return host, ref
}

func TestPullAndRun(t *testing.T) {
	host, ref := push(t)
	d := start(t, Options{Registries: []string{host}})
	run(t, d.Ctr(t.Context(), "image", "pull", "--plain-http", ref))
	id := filepath.Base(d.Dir)
	if out := run(t, d.Ctr(t.Context(), "run", "--rm", ref, id, "/bin/program", "inside")); out != "hello from inside\n" {
		t.Errorf("container printed %q", out)
	}
}

func TestCRIServes(t *testing.T) {
	d := start(t, Options{CRI: true})
	if out := run(t, d.Ctr(t.Context(), "plugins", "ls")); !strings.Contains(out, "cri") {
		t.Errorf("no CRI plugin:\n%s", out)
	}
}

// TestStopAfterKill leaves a container without its daemon behind, which Stop has to find all the same.
func TestStopAfterKill(t *testing.T) {
	host, ref := push(t)
	d := start(t, Options{Registries: []string{host}})
	run(t, d.Ctr(t.Context(), "image", "pull", "--plain-http", ref))
	id := filepath.Base(d.Dir)
	run(t, d.Ctr(t.Context(), "run", "-d", ref, id, "/bin/program", "forever"))
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if len(d.shims()) != 1 || !mounted(t, d.Dir) {
		t.Fatalf("the container did not outlive the daemon: shims %v", d.shims())
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/default/" + id); len(left) > 0 || len(d.shims()) > 0 || mounted(t, d.Dir) {
		t.Errorf("left over: cgroups %v, shims %v, mounts %v", left, d.shims(), mounted(t, d.Dir))
	}
}

// TestRestart continues with what an earlier daemon on the same directory had.
func TestRestart(t *testing.T) {
	host, ref := push(t)
	d := start(t, Options{Registries: []string{host}})
	run(t, d.Ctr(t.Context(), "image", "pull", "--plain-http", ref))
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	d = start(t, Options{Dir: d.Dir})
	if out := run(t, d.Ctr(t.Context(), "image", "ls", "-q")); strings.TrimSpace(out) != ref {
		t.Errorf("images after restart: %q, want %q", out, ref)
	}
}

func TestStartReportsTheLog(t *testing.T) {
	dir, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// A directory where the daemon wants a socket.
	if err := os.MkdirAll(filepath.Join(dir, "containerd.sock", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir, StartTimeout: 5 * time.Second}); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("want what the log says, got %v", err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir + strings.Repeat("x", 80)}); err == nil {
		t.Error("started in a directory too long for sockets")
	}
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), " "+dir+"/")
}
