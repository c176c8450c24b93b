package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/nodelab"
)

const (
	// dirPattern names a lab's directory, and so its namespaces: they have the directory's name as their prefix. What a lab
	// makes is therefore known from the moment its directory exists, before it makes it.
	dirPattern = "xl-"
	lockName   = "lock"
	stateName  = "lab.json"
	defaultDir = "/var/tmp"
)

// State is what other processes know of a lab.
type State struct {
	ID string `json:"id"`
	// Dir holds all its files but the registry's blobs.
	Dir string `json:"dir"`
	// Detached labs stay when the process that made them ends.
	Detached bool        `json:"detached"`
	Registry string      `json:"registry"` // host:port
	Hosts    []HostState `json:"hosts"`
}

// HostState is what other processes know of a host.
type HostState struct {
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"`
	Namespace string     `json:"namespace"`
	// Config is the agent's configuration file, also for commands of xylem; "" without an agent.
	Config string `json:"config,omitempty"`
}

// claim makes a lab's directory and holds its lock: as long as it is held, nobody removes the lab.
func claim(parent string) (dir string, lock *os.File, err error) {
	unlock, err := lockParent(parent)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	if dir, err = os.MkdirTemp(parent, dirPattern); err != nil {
		return "", nil, err
	}
	lock, err = os.Create(filepath.Join(dir, lockName))
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, lock, unix.Flock(int(lock.Fd()), unix.LOCK_EX)
}

// lockParent keeps others from making and removing labs in a directory.
func lockParent(parent string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(parent, "."+dirPattern+lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return f.Close, unix.Flock(int(f.Fd()), unix.LOCK_EX)
}

func (s State) write() error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.Dir, stateName)
	if err := os.WriteFile(path+".tmp", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// List returns the labs in a directory, default /var/tmp, whether or not they are in order.
func List(parent string) ([]State, error) {
	if parent == "" {
		parent = defaultDir
	}
	dirs, err := filepath.Glob(filepath.Join(parent, dirPattern+"*"))
	if err != nil {
		return nil, err
	}
	states := make([]State, len(dirs))
	for i, dir := range dirs {
		states[i] = State{ID: filepath.Base(dir), Dir: dir}
		text, err := os.ReadFile(filepath.Join(dir, stateName))
		if err != nil {
			continue // just being made, or its maker was killed before it wrote it
		}
		if err := json.Unmarshal(text, &states[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	}
	return states, nil
}

// Sweep removes the labs in a directory, default /var/tmp, that no process owns any more, and returns them. Those that were
// made to stay go only if detached is set; if id is not "", that lab only.
func Sweep(ctx context.Context, parent, id string, detached bool) (removed []string, err error) {
	if parent == "" {
		parent = defaultDir
	}
	unlock, err := lockParent(parent)
	if err != nil {
		return nil, err
	}
	defer unlock()
	labs, err := List(parent)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, lab := range labs {
		if id != "" && lab.ID != id || lab.Detached && !detached {
			continue
		}
		owned, err := lab.removeUnlessOwned(ctx)
		if errs = append(errs, err); !owned && err == nil {
			removed = append(removed, lab.ID)
		}
	}
	return removed, errors.Join(errs...)
}

func (s State) removeUnlessOwned(ctx context.Context) (owned bool, err error) {
	lock, err := os.OpenFile(filepath.Join(s.Dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return true, nil
	}
	return false, remove(ctx, s.Dir)
}

// remove ends everything of a lab and removes it: processes, then mounts, then files and the network. What fails is left for the next
// time, with the directory, so that it is found.
func remove(ctx context.Context, dir string) error {
	namespaces, err := namespacesOf(filepath.Base(dir))
	if err != nil {
		return err
	}
	if err := end(ctx, namespaces); err != nil {
		return err
	}
	if err := errors.Join(nodelab.RemoveStale(dir), containerdtest.UnmountBelow(dir)); err != nil {
		return err
	}
	var commands strings.Builder
	for _, n := range namespaces {
		fmt.Fprintf(&commands, "netns del %s\n", n)
	}
	if _, err := iproute(ctx, "ip", commands.String(), "-batch", "-"); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func namespacesOf(id string) ([]namespace, error) {
	paths, err := filepath.Glob(filepath.Join(namespaceDir, id+"-*"))
	names := make([]namespace, len(paths))
	for i, p := range paths {
		names[i] = namespace(filepath.Base(p))
	}
	return names, err
}

// Run runs a command on the host of a lab that this process may not own, like (*exec.Cmd).Run.
func (h HostState) Run(cmd *exec.Cmd) error {
	if err := namespace(h.Namespace).start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
