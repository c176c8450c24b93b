package clienttest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// somewhere is a registry's name that leads nowhere: what is pulled from it has come through the mirror.
const somewhere = "registry.invalid"

// engine is podman or buildah with everything it keeps below a directory of its own.
type engine struct {
	t    *testing.T
	name string
	dir  string
	env  []string
}

// newEngine returns one that is configured as docs/proxy.md says, with the proxy as mirror of somewhere.
func newEngine(t *testing.T, name, proxy string) *engine {
	t.Helper()
	e := &engine{t: t, name: name, dir: shortDir(t)}
	text := between(t, document(t, "proxy.md", "### podman, buildah, skopeo", "\n### "), "xylem.conf`:\n", "\n`insecure`")
	text = strings.ReplaceAll(text, "    ", "")
	e.env = append(os.Environ(), "HOME="+e.dir, "XDG_RUNTIME_DIR="+e.dir, "TMPDIR="+e.dir,
		"CONTAINERS_REGISTRIES_CONF="+e.write("registries.conf", replaced(t, replaced(t, text, "docker.io", somewhere), "127.0.0.1:9751", proxy)),
		"REGISTRY_AUTH_FILE="+e.write("auth.json", "{}"),
		"CONTAINERS_CONF="+e.write("containers.conf", fmt.Sprintf(`[engine]
lock_type = "file"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = %q
[network]
network_config_dir = %q
`, filepath.Join(e.dir, "tmp"), filepath.Join(e.dir, "net"))))
	t.Cleanup(e.clean)
	return e
}

func (e *engine) write(name, text string) string {
	path := filepath.Join(e.dir, name)
	must(e.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func (e *engine) command(args ...string) *exec.Cmd {
	storage := []string{"--root", filepath.Join(e.dir, "root"), "--runroot", filepath.Join(e.dir, "run"), "--storage-driver", "vfs"}
	cmd := exec.Command(e.name, append(storage, args...)...)
	cmd.Env, cmd.Dir = e.env, e.dir
	return cmd
}

// clean checks that no mount and no process is left.
func (e *engine) clean() {
	if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(text), " "+e.dir+"/") {
		e.t.Errorf("mounts are left: %v\n%s", err, text)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(e.t, err)
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), e.dir) {
			e.t.Errorf("a process is left: %s %q", p, text)
		}
	}
}

// TestPodman pulls an image by a name that only the mirror can answer, with the documented configuration.
func TestPodman(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	proxy := serveProxy(t, o.host)
	for range 2 { // the second one has the proxy's memory only
		e := newEngine(t, "podman", proxy)
		run(t, e.command("pull", somewhere+"/app:1"))
		root := strings.TrimSpace(run(t, e.command("image", "mount", somewhere+"/app:1"))) // a directory, with vfs
		if out := run(t, exec.Command("chroot", root, "/bin/program")); out != says {
			t.Errorf("it printed %q", out)
		}
		run(t, e.command("image", "unmount", somewhere+"/app:1"))
		if out := run(t, e.command("image", "inspect", "--format", "{{.Architecture}} {{.RepoDigests}}", somewhere+"/app:1")); !strings.Contains(out, i.index.digest()) {
			t.Errorf("podman has %s, want the index %s", out, i.index.digest())
		}
	}
	o.wasRead(t, i.own...)
	e := newEngine(t, "podman", proxy)
	run(t, e.command("pull", "--platform", other.String(), somewhere+"/app:1"))
	o.wasRead(t, append(i.own, i.others...)...)
}

// TestPodmanLogsIn: credentials for the mirror are the registry's. Without them podman passes the mirror by.
func TestPodmanLogsIn(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	o.lock("ann", "secret")
	proxy := serveProxy(t, o.host)
	e := newEngine(t, "podman", proxy)
	if out, err := output(e.command("pull", somewhere+"/app:1")); err == nil {
		t.Errorf("pulled without a login: %s", out)
	}
	o.wasRead(t)
	if out, err := output(e.command("login", "--tls-verify=false", "--username", "ann", "--password", "wrong", proxy)); err == nil {
		t.Errorf("a wrong password is taken: %s", out)
	}
	run(t, e.command("login", "--tls-verify=false", "--username", "ann", "--password", "secret", proxy))
	run(t, e.command("pull", somewhere+"/app:1"))
	o.wasRead(t, i.own...)
}

// TestBuildah builds on a base image that comes through the mirror.
func TestBuildah(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	e := newEngine(t, "buildah", serveProxy(t, o.host))
	name := strings.TrimSpace(run(t, e.command("from", somewhere+"/app:1")))
	root := strings.TrimSpace(run(t, e.command("mount", name)))
	if out := run(t, exec.Command("chroot", root, "/bin/program")); out != says {
		t.Errorf("it printed %q", out)
	}
	run(t, e.command("umount", name))
	run(t, e.command("rm", name))
	o.wasRead(t, i.own...)
}

// TestWithoutTheProxy: clients read the registry themselves when no proxy is there.
func TestWithoutTheProxy(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := l.Addr().String()
	must(t, l.Close())
	e := newEngine(t, "podman", nobody)
	text := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", o.host, nobody)
	e.write("registries.conf", text)
	run(t, e.command("pull", o.host+"/app:1"))
	o.wasRead(t, i.own...)
}
