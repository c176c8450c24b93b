package snapshotter

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// serve runs Serve and waits until it answers; stop ends it and returns its error.
func serve(t *testing.T, s *Snapshotter, socket string) (client snapshotsapi.SnapshotsClient, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, socket) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		conn.Close()
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	client = snapshotsapi.NewSnapshotsClient(conn)
	_, err = client.Stat(t.Context(), &snapshotsapi.StatSnapshotRequest{Key: "none"}, grpc.WaitForReady(true))
	if status.Code(err) != codes.NotFound {
		t.Fatalf("stat: %v", err)
	}
	return client, stop
}

func TestServe(t *testing.T) {
	dir, err := os.MkdirTemp("", "sn")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "run", "agent.sock")
	s := open(t, Config{}, newFake(nil))
	client, stop := serve(t, s, socket)
	if st, err := os.Stat(socket); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	prepared, err := client.Prepare(t.Context(), &snapshotsapi.PrepareSnapshotRequest{Key: "key"})
	if err != nil || len(prepared.Mounts) != 1 {
		t.Errorf("prepare: %v, %v", prepared, err)
	}
	if err := s.Serve(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("second server: %v", err)
	}
	if _, err := client.Cleanup(t.Context(), &snapshotsapi.CleanupRequest{}); err != nil {
		t.Errorf("the first server after the second: %v", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if names(t, filepath.Dir(socket)) != "" {
		t.Errorf("left: %s", names(t, filepath.Dir(socket)))
	}
}

// TestStaleSocket: what a process that was killed left is replaced, also what it left half made.
func TestStaleSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "sn")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "agent.sock")
	for _, path := range []string{socket, socket + ".new"} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	_, stop := serve(t, open(t, Config{}, newFake(nil)), socket)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(socket, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := open(t, Config{}, newFake(nil)).Serve(t.Context(), socket); err == nil {
		t.Error("served on a directory")
	}
	if names(t, dir) != "agent.sock" {
		t.Errorf("left: %s", names(t, dir))
	}
}
