package executor

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// TestNetns: the namespace has a loopback device of its own, and what is made in it stays in it.
func TestNetns(t *testing.T) {
	ns, err := newNetns(filepath.Join(t.TempDir(), "ns"))
	must(t, err)
	t.Cleanup(func() { must(t, ns.remove()) })
	accepted := make(chan error, 1)
	go func() {
		conn, err := ns.api.Accept()
		if err == nil {
			err = conn.Close()
		}
		accepted <- err
	}()
	conn, err := ns.dial(t.Context(), 9001)
	must(t, err)
	must(t, conn.Close())
	must(t, <-accepted)
	if conn, err := net.Dial("tcp", runtimeAddress); err == nil {
		conn.Close()
		t.Error("the listener can be reached from outside")
	}
	if _, err := ns.dial(t.Context(), 8080); err == nil {
		t.Error("somebody listens on a port that nobody has")
	}
}

// TestThreadsComeBack: no thread stays in another namespace, however many are made.
func TestThreadsComeBack(t *testing.T) {
	home, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	dir := t.TempDir()
	for i := range 20 {
		ns, err := newNetns(filepath.Join(dir, string(rune('a'+i))))
		must(t, err)
		must(t, ns.remove())
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	must(t, err)
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home {
			t.Errorf("%s is %s, not %s", task, ns, home)
		}
	}
	runtime.KeepAlive(tasks)
}

func TestSpares(t *testing.T) {
	s := newSpares(t.TempDir(), 2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.fill(ctx, testConfig(t).Log)
	}()
	for range 5 {
		ns, err := s.take()
		must(t, err)
		must(t, ns.remove())
	}
	cancel()
	<-done
	must(t, s.empty())
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDialGivesUp(t *testing.T) {
	ns, err := newNetns(filepath.Join(t.TempDir(), "ns"))
	must(t, err)
	t.Cleanup(func() { must(t, ns.remove()) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := newHTTPContract(ns, 1).ready(ctx); err == nil {
		t.Error("a program that is not there is ready")
	}
}
