package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout bounds each step of Stop.
const stopTimeout = 10 * time.Second

// runcRoot is where containerd's shim lets runc keep its state, whatever the daemon's directories are.
const runcRoot = "/run/containerd/runc"

// Kill ends the daemon like a crash, by SIGKILL; shims and containers live on. A daemon started on the same Dir finds
// them again. Stop may follow, and cleans up.
func (d *Daemon) Kill() error {
	err := d.cmd.Process.Kill()
	<-d.exited
	return err
}

// Stop removes the daemon's containers, ends it and every shim of it, and unmounts what is mounted below Dir. The
// directory stays. It does all of that as far as possible before it returns what went wrong. Each step is bounded in time.
func (d *Daemon) Stop() error {
	var errs []error
	if d.running() {
		d.removeTasks()
		errs = append(errs, d.terminate())
	}
	return errors.Join(append(errs, Clean(d.Dir))...)
}

// Clean removes what a daemon left that is no longer running: shims, containers, and mounts below dir, which was its Dir.
func Clean(dir string) error {
	d := &Daemon{Dir: dir, Address: Socket(dir)}
	return errors.Join(d.killShims(), d.removeBundles(), UnmountBelow(dir))
}

// RemoveNamespace removes what runc keeps on the machine for a namespace of containerd when its last container has gone: empty directories
// of state and cgroups.
func RemoveNamespace(namespace string) error {
	var errs []error
	for _, parent := range []string{runcRoot, "/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(filepath.Join(parent, namespace))
		errs = append(errs, err)
		for _, dir := range dirs {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}

func (d *Daemon) running() bool {
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// removeTasks lets containerd remove what runs in it, the only way that leaves neither cgroups nor runtime state. Errors
// are left to the steps that follow.
func (d *Daemon) removeTasks() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for _, b := range d.bundles() {
		_ = d.Ctr(ctx, "-n", b.namespace, "tasks", "delete", "--force", b.id).Run()
	}
}

// terminate ends the daemon itself.
func (d *Daemon) terminate() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.exited:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("containerd %d ignored SIGTERM for %v: %w", d.Pid(), stopTimeout, d.Kill())
	}
}

func (d *Daemon) bundleRoot() string {
	return filepath.Join(d.path("state"), "io.containerd.runtime.v2.task")
}

type bundle struct{ namespace, id string }

// bundles lists the containers that have runtime state in this daemon.
func (d *Daemon) bundles() []bundle {
	paths, _ := filepath.Glob(filepath.Join(d.bundleRoot(), "*", "*"))
	var found []bundle
	for _, p := range paths {
		found = append(found, bundle{filepath.Base(filepath.Dir(p)), filepath.Base(p)})
	}
	return found
}

// removeBundles frees what runc keeps of containers whose shim had to be killed: cgroups and state.
func (d *Daemon) removeBundles() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	for _, b := range d.bundles() {
		removeShimSocket(filepath.Join(d.bundleRoot(), b.namespace, b.id))
		if _, err := os.Stat(filepath.Join(runcRoot, b.namespace, b.id)); err != nil {
			continue
		}
		if out, err := exec.CommandContext(ctx, "runc", "--root", filepath.Join(runcRoot, b.namespace), "delete", "--force", b.id).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("runc delete %s: %w: %s", b.id, err, out))
		}
	}
	return errors.Join(errs...)
}

var shimSocket = regexp.MustCompile(`unix://(/run/containerd/s/[0-9a-f]{64})`)

// removeShimSocket removes the socket that a killed shim left outside of the daemon's directory; the bundle names it.
func removeShimSocket(bundle string) {
	for _, name := range []string{"address", "bootstrap.json"} { // 1.x, 2.x
		text, _ := os.ReadFile(filepath.Join(bundle, name))
		if m := shimSocket.FindSubmatch(text); m != nil {
			os.Remove(string(m[1]))
		}
	}
}

// killShims kills the shims that serve this daemon's address, and what runs in them, and waits until they are gone.
func (d *Daemon) killShims() error {
	deadline := time.Now().Add(stopTimeout)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		shims := d.shims()
		if len(shims) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("shims %v of %s do not end", shims, d.Address)
		}
		for _, pid := range shims {
			for _, child := range children(pid) {
				_ = syscall.Kill(child, syscall.SIGKILL)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-ticker.C
	}
}

// shims finds the processes that were started as containerd-shim… with -address <our socket>.
func (d *Daemon) shims() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		args := strings.Split(string(cmdline), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
			continue
		}
		for i := 1; i+1 < len(args); i++ {
			if args[i] == "-address" && args[i+1] == d.Address {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// children returns the processes whose parent is pid.
func children(pid int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var pids []int
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// UnmountBelow detaches every mount on dir and below it, the last mounted first.
func UnmountBelow(dir string) error {
	points, err := MountsBelow(dir)
	errs := []error{err}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// MountsBelow lists what is mounted at a directory and below it, in the order of mounting.
func MountsBelow(dir string) (points []string, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if point := unescape(strings.Fields(line)[4]); point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points, nil
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
