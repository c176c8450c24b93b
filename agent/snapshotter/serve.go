package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"google.golang.org/grpc"
)

// stopTimeout bounds the wait for calls under way when Serve ends.
const stopTimeout = 10 * time.Second

// Register adds the snapshots service to a gRPC server.
func (s *Snapshotter) Register(r grpc.ServiceRegistrar) {
	snapshotsapi.RegisterSnapshotsServer(r, snapshotservice.FromSnapshotter(s))
}

// Serve serves containerd on a unix socket, which only the owner of the process may use, until ctx ends. Calls under way
// are finished then. A socket that a dead process left is replaced; one that somebody serves is an error.
func (s *Snapshotter) Serve(ctx context.Context, socket string) error {
	listener, err := listen(socket)
	if err != nil {
		return fmt.Errorf("snapshotter: %w", err)
	}
	server := grpc.NewServer()
	s.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		stop(server)
		if err = <-served; errors.Is(err, grpc.ErrServerStopped) { // before it had begun
			err = nil
		}
	}
	return errors.Join(err, removeSocket(socket))
}

// listen makes the socket under another name first, so that nobody can connect before its mode is set and no moment
// passes without a socket that works.
func listen(socket string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", socket, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another process serves %s", socket)
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return nil, err
	}
	fresh := socket + ".new"
	if err := removeSocket(fresh); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", fresh)
	if err != nil {
		return nil, err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, socket)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close(), removeSocket(fresh))
	}
	return listener, nil
}

func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// stop ends the server gracefully, or by force when calls take too long.
func stop(server *grpc.Server) {
	stopped := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(stopTimeout):
		server.Stop()
		<-stopped
	}
}
