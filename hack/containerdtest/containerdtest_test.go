package containerdtest

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// program prints what the test looks for, then waits until it is killed if told so. Its argument "write" makes it change
// its file system.
const program = `package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	fmt.Println("hello from", os.Args[1])
	if _, err := os.Stat("/lazy"); err == nil {
		fmt.Println("on a tree")
	}
	layer, _ := os.ReadFile("/etc/layer")
	fmt.Println("layer", string(layer))
	switch os.Args[1] {
	case "forever":
		syscall.Pause()
	case "write":
		if err := os.WriteFile("/etc/written", []byte("by the container"), 0o644); err != nil {
			panic(err)
		}
		if err := os.Remove("/etc/layer"); err != nil {
			panic(err)
		}
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

// source is a registry on loopback with the test program's image, whose two layers are files of one.
type source struct {
	host, ref string

	mu    sync.Mutex
	blobs int // blobs that were downloaded, the config among them
}

func (s *source) downloads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs
}

func push(t *testing.T) *source {
	t.Helper()
	path, err := BuildProgram(t.Context(), t.TempDir(), program)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Image([]string{"/bin/program", "forever"}, map[string][]byte{"bin/program": binary}, map[string][]byte{"etc/layer": []byte("2")})
	if err != nil {
		t.Fatal(err)
	}
	s := &source{}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s.mu.Lock()
			s.blobs++
			s.mu.Unlock()
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	s.ref = s.host + "/hello:1"
	tag, err := name.ParseReference(s.ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPullAndRun(t *testing.T) {
	src := push(t)
	d := start(t, Options{Registries: []string{src.host}})
	run(t, d.Ctr(t.Context(), "image", "pull", "--plain-http", src.ref))
	id := filepath.Base(d.Dir)
	if out := run(t, d.Ctr(t.Context(), "run", "--rm", src.ref, id, "/bin/program", "inside")); out != "hello from inside\nlayer 2\n" {
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
	src := push(t)
	d := start(t, Options{Registries: []string{src.host}})
	run(t, d.Ctr(t.Context(), "image", "pull", "--plain-http", src.ref))
	id := filepath.Base(d.Dir)
	run(t, d.Ctr(t.Context(), "run", "-d", src.ref, id, "/bin/program", "forever"))
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if len(d.shims()) != 1 || len(children(d.shims()[0])) != 1 || !mounted(t, d.Dir) {
		t.Fatalf("the container did not outlive the daemon: shims %v", d.shims())
	}
	address, err := os.ReadFile(filepath.Join(d.bundleRoot(), "default", id, "address"))
	if err != nil {
		t.Fatal(err)
	}
	socket := strings.TrimPrefix(string(address), "unix://")
	if _, err := os.Stat(socket); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	sockets, _ := filepath.Glob("/run/containerd/s/*")
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/default/" + id); len(left) > 0 || slices.Contains(sockets, socket) || len(d.shims()) > 0 || mounted(t, d.Dir) {
		t.Errorf("left over: cgroups %v, shims %v, mounts %v", left, d.shims(), mounted(t, d.Dir))
	}
}

// TestRestart continues with what an earlier daemon on the same directory had.
func TestRestart(t *testing.T) {
	src := push(t)
	d := start(t, Options{Registries: []string{src.host}})
	run(t, d.Ctr(t.Context(), "image", "pull", "--plain-http", src.ref))
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	d = start(t, Options{Dir: d.Dir})
	if out := run(t, d.Ctr(t.Context(), "image", "ls", "-q")); strings.TrimSpace(out) != src.ref {
		t.Errorf("images after restart: %q, want %q", out, src.ref)
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
