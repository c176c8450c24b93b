package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that was seen, told apart from a later one with the same number by the time of its start.
type process struct {
	pid, parent int
	start       string // in the kernel's ticks since boot
}

// members returns the processes that are in one of the namespaces, and their descendants, which may have moved on into a
// namespace of their own like a pod's. Nothing but what the lab started is in them: nobody else knows them.
func members(namespaces []namespace) ([]process, error) {
	inside, err := identities(namespaces)
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []process
	children := map[int][]process{}
	for _, dir := range dirs {
		p, err := readProcess(dir)
		if err != nil || p.pid == os.Getpid() {
			continue // it has ended
		}
		children[p.parent] = append(children[p.parent], p)
		if info, err := os.Stat(filepath.Join(dir, "ns/net")); err == nil && slices.ContainsFunc(inside, func(i os.FileInfo) bool { return os.SameFile(i, info) }) {
			found = append(found, p)
		}
	}
	for i := 0; i < len(found); i++ { // found grows on the way
		for _, c := range children[found[i].pid] {
			if !slices.Contains(found, c) {
				found = append(found, c)
			}
		}
	}
	return found, nil
}

func identities(namespaces []namespace) ([]os.FileInfo, error) {
	var infos []os.FileInfo
	for _, n := range namespaces {
		info, err := os.Stat(n.path())
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// readProcess reads /proc/PID/stat. Zombies are errors: they are only waiting to be read.
func readProcess(dir string) (process, error) {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return process{}, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the program's name before it may have spaces
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{}, fmt.Errorf("%s: %w", dir, os.ErrProcessDone)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, err
	}
	pid, err := strconv.Atoi(filepath.Base(dir))
	return process{pid: pid, parent: parent, start: fields[19]}, err
}

// signal sends a signal to the very process that was seen.
func (p process) signal(s unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now, err := readProcess(fmt.Sprintf("/proc/%d", p.pid))
	if err != nil || now.start != p.start {
		return os.ErrProcessDone
	}
	return unix.PidfdSendSignal(fd, s, nil, 0)
}

// How long processes have to end by themselves when they are told to, and how long killed ones have until they are gone.
const (
	termGrace = 5 * time.Second
	killGrace = 10 * time.Second
)

// end asks all members to end, and kills those that have not after a while.
func end(ctx context.Context, namespaces []namespace) error {
	ctx, cancel := context.WithTimeout(ctx, termGrace)
	defer cancel()
	if err := signalUntilGone(ctx, namespaces, unix.SIGTERM, true); err == nil {
		return nil
	}
	return kill(context.WithoutCancel(ctx), namespaces)
}

// kill ends all members at once, like a power failure, and waits until they are gone.
func kill(ctx context.Context, namespaces []namespace) error {
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	return signalUntilGone(ctx, namespaces, unix.SIGKILL, false)
}

// signalUntilGone sends the signal to all members, only once to each if wanted, and to those that appear meanwhile.
func signalUntilGone(ctx context.Context, namespaces []namespace, signal unix.Signal, once bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	told := map[process]bool{}
	for {
		running, err := members(namespaces)
		if err != nil || len(running) == 0 {
			return err
		}
		for _, p := range running {
			if !once || !told[p] {
				_ = p.signal(signal) // it ends or is seen again
				told[p] = true
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end: %w", running, ctx.Err())
		}
	}
}
