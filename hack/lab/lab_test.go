package lab

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

const helloSource = `package main

import "fmt"

func main() { fmt.Println("ready") }
`

// payload is large enough to be told from requests, answers and metadata in a link's counters.
const payload = 4 << 20

func hello(t *testing.T) []byte {
	t.Helper()
	path, err := containerdtest.BuildProgram(t.Context(), t.TempDir(), helloSource)
	must(t, err)
	program, err := os.ReadFile(path)
	must(t, err)
	return program
}

// pushed puts an image with one file into the lab's registry, which is its program, and its block image.
func pushed(t *testing.T, l *Lab, file []byte) (ref string, image v1.Image) {
	t.Helper()
	image, err := containerdtest.Image([]string{"/file"}, map[string][]byte{"file": file})
	must(t, err)
	ref, err = l.Services.Push(t.Context(), "hello:1", image)
	must(t, err)
	_, err = l.Services.Convert(t.Context(), ref, "--push")
	must(t, err)
	return ref, image
}

// TestAgents mounts an image on each of four hosts, counts what left the registry, and turns one host off and on.
func TestAgents(t *testing.T) {
	l := up(t, Config{Hosts: 4, Link: Link{Up: 200 * Mbit, Down: 200 * Mbit}, Agents: true, AgentConfig: "background_fetch = \"0\"\n"})
	before, err := l.Registry().Traffic(t.Context())
	must(t, err)
	data := make([]byte, payload)
	_, _ = rand.Read(data)
	ref, image := pushed(t, l, data)
	loaded, err := l.Registry().Traffic(t.Context())
	must(t, err)
	if d := loaded.Sub(before); d.Sent+d.Received > payload/4 {
		t.Errorf("push and conversion went over the registry's link: %+v", d)
	}
	for _, h := range l.Hosts() {
		mountAndRead(t, l, h, ref, data)
	}
	sent, err := l.Registry().Traffic(t.Context())
	must(t, err)
	if d := sent.Sub(loaded); d.Sent < 4*payload || d.Sent > 5*payload || d.Received > payload {
		t.Errorf("after four hosts read %d bytes each, the registry sent %d and received %d", payload, d.Sent, d.Received)
	}
	downloadAll(t, l, ref, image)
	powerCycle(t, l, l.Hosts()[0], ref, data)
}

func mountAndRead(t *testing.T, l *Lab, h *Host, ref string, data []byte) {
	t.Helper()
	dir := l.Services.Path("mnt-" + h.Name)
	must(t, os.MkdirAll(dir, 0o700))
	if _, err := h.Node.Xylem(t.Context(), "mount", ref, dir); err != nil {
		t.Fatalf("%s: %v\n%s", h.Name, err, h.Node.AgentLogTail())
	}
	out, err := exec.Command("cat", filepath.Join(dir, "file")).Output() // not read by this process: a FUSE server may not be its own reader
	if err != nil || !slices.Equal(out, data) {
		t.Errorf("%s read %d bytes of %d, %v", h.Name, len(out), len(data), err)
	}
}

func downloadAll(t *testing.T, l *Lab, ref string, image v1.Image) {
	t.Helper()
	manifest, err := image.Manifest()
	must(t, err)
	var want int64
	for _, layer := range manifest.Layers {
		want += layer.Size
	}
	all, err := l.DownloadAll(t.Context(), ref)
	must(t, err)
	if len(all) != len(l.Hosts()) {
		t.Errorf("%d downloads by %d hosts", len(all), len(l.Hosts()))
	}
	for i, d := range all {
		if d.Bytes != want || d.Time.Seconds() < float64(want)/l.Registry().Link().Up.Bytes() {
			t.Errorf("h%d downloaded %d bytes of %d in %v", i+1, d.Bytes, want, d.Time)
		}
	}
	if _, err := l.Hosts()[0].Download(t.Context(), ref+"none"); err == nil {
		t.Error("an image that does not exist was downloaded")
	}
}

// powerCycle ends a host, at first its agent and then everything.
func powerCycle(t *testing.T, l *Lab, h *Host, ref string, data []byte) {
	t.Helper()
	must(t, h.Node.KillAgent())
	must(t, h.Restart(t.Context()))
	images, err := h.Node.Xylem(t.Context(), "images")
	if err != nil || !strings.Contains(images, ref) {
		t.Errorf("after its agent was killed, it has images %q, %v", images, err)
	}
	sleeper := exec.Command("sleep", "1000")
	must(t, h.Start(sleeper))
	must(t, h.Kill(t.Context()))
	if err := sleeper.Wait(); err == nil {
		t.Error("a process survived its host")
	}
	if running, err := members([]namespace{h.port.namespace()}); err != nil || len(running) != 0 {
		t.Errorf("on a killed host run %v, %v", running, err)
	}
	must(t, containerdtest.UnmountBelow(l.Services.Path("mnt-"+h.Name)))
	must(t, h.Restart(t.Context()))
	mountAndRead(t, l, h, ref, data)
}

// TestContainerd starts a container on a host, and turns the host off and on with it.
func TestContainerd(t *testing.T) {
	l := up(t, Config{Hosts: 1, Agents: true, Containerd: true})
	ref, _ := pushed(t, l, hello(t))
	h := l.Hosts()[0]
	run := func() {
		t.Helper()
		if _, line, err := h.Node.Run(t.Context(), nodelab.Xylem, ref); err != nil || line != "ready" {
			t.Fatalf("printed %q, %v", line, err)
		}
	}
	run()
	must(t, h.Node.Mounted(t.Context(), ref))
	must(t, h.Kill(t.Context()))
	must(t, h.Restart(t.Context()))
	run()
}

// TestScheduler starts what agents join, kills it, and starts it again.
func TestScheduler(t *testing.T) {
	l := up(t, Config{Hosts: 1, Agents: true, Scheduler: true})
	joined := func() {
		t.Helper()
		eventually(t, time.Minute, "the agent has a session", func() error {
			agents, err := api.NewAdmin(l.SchedulerSocket()).Agents(t.Context())
			if err == nil && (len(agents) != 1 || !agents[0].Session || agents[0].Agent.Addrs[0] != netip.MustParseAddrPort("10.99.1.1:9752")) {
				err = fmt.Errorf("the scheduler knows %+v", agents)
			}
			return err
		})
	}
	joined()
	must(t, l.KillScheduler())
	if running, err := members([]namespace{l.Scheduler().port.namespace()}); err != nil || len(running) != 0 {
		t.Errorf("after KillScheduler run %v, %v", running, err)
	}
	must(t, l.StartScheduler(t.Context()))
	joined()
}

// TestKilledOwner kills the process that made a lab. What it left, the next one removes.
func TestKilledOwner(t *testing.T) {
	before := storages(t)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVariable+"=owner")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	dir, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	s := State{ID: filepath.Base(strings.TrimSpace(dir)), Dir: strings.TrimSpace(dir)}
	if swept, err := Sweep(t.Context(), "", s.ID, true); err != nil || len(swept) != 0 {
		t.Errorf("removed while its owner lives: %v, %v", swept, err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	swept, err := Sweep(t.Context(), "", s.ID, false)
	if err != nil || !slices.Equal(swept, []string{s.ID}) {
		t.Errorf("removed %v, %v", swept, err)
	}
	nothingLeft(t, s)
	for _, dir := range storages(t) {
		if storage, err := os.Stat(dir); !slices.Contains(before, dir) && err == nil && storage.IsDir() && !owned(dir) {
			t.Errorf("%s is left", dir)
		}
	}
}

// owned says whether a registry's directory belongs to a lab that there is, of another test maybe.
func owned(storage string) bool {
	for _, pattern := range []string{"/var/tmp/xylem-lab-*", "/var/tmp/xl-*/xylem-lab-*", "/var/tmp/*/xl-*/xylem-lab-*"} {
		labs, _ := filepath.Glob(pattern)
		if slices.ContainsFunc(labs, func(lab string) bool { return filepath.Base(lab) == filepath.Base(storage) }) {
			return true
		}
	}
	return false
}

// TestHalfMade removes what is left if a lab's maker was killed before anything was written down.
func TestHalfMade(t *testing.T) {
	parent := t.TempDir()
	dir, lock, err := claim(parent)
	must(t, err)
	must(t, lock.Close())
	must(t, os.Remove(filepath.Join(dir, lockName)))
	id := filepath.Base(dir)
	_, err = iproute(t.Context(), "ip", "", "netns", "add", id+"-h1")
	must(t, err)
	if swept, err := Sweep(t.Context(), parent, "", false); err != nil || !slices.Equal(swept, []string{id}) {
		t.Errorf("removed %v, %v", swept, err)
	}
	nothingLeft(t, State{ID: id, Dir: dir})
}

// A lab that fails to come up leaves nothing, and says why in one line.
func TestBadConfig(t *testing.T) {
	dir := t.TempDir()
	for want, cfg := range map[string]Config{
		"1 to 250 hosts, not 0":   {},
		"1 to 250 hosts, not 300": {Hosts: 300},
		"1 to 250 hosts, not -1":  {Hosts: -1},
		"rate of 1 bit/s":         {Hosts: 1, Link: Link{Up: 1}},
		"rate of -8 bit/s":        {Hosts: 1, Links: map[string]Link{"registry": {Down: -8}}},
		"queue of 1m0s":           {Hosts: 1, Link: Link{Queue: 60e9}},
		`"h2": the lab has no such host`: {
			Hosts: 1, Links: map[string]Link{"h2": {}},
		},
		"without agents":              {Hosts: 1, Scheduler: true},
		`congestion control "nosuch"`: {Hosts: 1, Link: Link{Congestion: "nosuch"}},
		"run make build first":        {Hosts: 1, Xylem: "/nonexistent/xylem"},
		"is not the name of one":      {Hosts: 1, Link: Link{Congestion: "../../x"}},
		"no such file or directory":   {Hosts: 1, Dir: "/nonexistent"},
	} {
		if cfg.Dir == "" {
			cfg.Dir = dir
		}
		_, err := Up(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line with %q", cfg, err, want)
		}
	}
	if left, err := List(dir); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestNeedsRoot(t *testing.T) {
	const nobody, keep = 65534, ^uintptr(0)
	runtime.LockOSThread() // the system call itself changes one thread only
	defer runtime.UnlockOSThread()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, nobody, keep); errno != 0 {
		t.Fatal(errno)
	}
	_, err := Up(t.Context(), Config{Hosts: 1})
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
		t.Fatal(errno)
	}
	if err == nil || !strings.Contains(err.Error(), "need root") {
		t.Error(err)
	}
}

// Members are found by where they are, also those that moved on into a namespace of their own.
func TestMembers(t *testing.T) {
	l := up(t, Config{Hosts: 1})
	h := l.Hosts()[0]
	inside := []namespace{h.port.namespace()}
	cmd := exec.Command("sh", "-c", "unshare --net sleep 1000 & wait")
	must(t, h.Start(cmd))
	eventually(t, 5e9, "both are seen", func() error {
		found, err := members(inside)
		if err == nil && len(found) != 2 {
			err = fmt.Errorf("found %v", found)
		}
		return err
	})
	stale := process{pid: cmd.Process.Pid, start: "1"}
	if err := stale.signal(unix.SIGKILL); err == nil {
		t.Error("an earlier process of the same number was signalled")
	}
	must(t, kill(t.Context(), inside))
	_ = cmd.Wait()
	if found, err := members(inside); err != nil || len(found) != 0 {
		t.Errorf("left are %v, %v", found, err)
	}
}
