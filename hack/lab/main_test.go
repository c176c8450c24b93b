package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test's binary is also a program that a test runs beside it.
const roleVariable = "LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "owner" {
		if err := owner(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// xylem is the binary under test.
func xylem() string {
	if path := os.Getenv("XYLEM"); path != "" {
		return path
	}
	return "../../bin/xylem"
}

// up makes a lab that is removed after the test, with nothing left of it.
func up(t *testing.T, cfg Config) *Lab {
	t.Helper()
	if cfg.Xylem == "" {
		cfg.Xylem = xylem()
	}
	cfg.Log = t.Output()
	l, err := Up(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, l.State())
	})
	return l
}

// nothingLeft checks that a lab is gone.
func nothingLeft(t *testing.T, s State) {
	t.Helper()
	if namespaces, err := namespacesOf(s.ID); err != nil || len(namespaces) != 0 {
		t.Errorf("namespaces are left: %v, %v", namespaces, err)
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", s.Dir, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), s.ID) {
		t.Errorf("mounts are left: %v", err)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, c := range commands {
		if text, _ := os.ReadFile(c); strings.Contains(string(text), s.Dir+"/") {
			t.Errorf("a process is left: %s", strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
}

// storages are the directories of registries' blobs in memory, of all labs.
func storages(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/dev/shm/xylem-lab-*")
	must(t, err)
	return dirs
}

// owner makes a lab, says where it is, and waits to be killed.
func owner() error {
	l, err := Up(context.Background(), Config{Hosts: 2, Agents: true, Xylem: xylem()})
	if err != nil {
		return err
	}
	// One that ignores SIGTERM, and one that nobody is told of.
	if _, err := l.Hosts()[0].Daemon("deaf", exec.Command("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1000; done")); err != nil {
		return err
	}
	if err := l.Hosts()[1].Start(exec.Command("unshare", "--net", "--fork", "sleep", "1000")); err != nil {
		return err
	}
	fmt.Println(l.State().Dir)
	select {}
}

// eventually waits for a condition that comes true by itself.
func eventually(t *testing.T, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}
