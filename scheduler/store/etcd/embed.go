package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/xylem-project/xylem/scheduler/store"
)

// EmbedConfig of a server in this process. Dir is needed.
type EmbedConfig struct {
	// Dir keeps the data. No other process may use it meanwhile.
	Dir string
	// Socket is the path of a unix socket at which others on the machine reach the server, without authentication: its directory must keep
	// strangers out. Default "": nobody else does.
	Socket string
	// Quota bounds the data, in bytes. Default 512 MiB.
	Quota int64
	// Prefix begins all keys. Default "/xylem/".
	Prefix string
	// Log receives what etcd warns of. Default: discarded.
	Log *slog.Logger
}

// Server is an etcd of one member.
type Server struct {
	etcd *embed.Etcd
	*Client
}

// Embed starts a server and waits until it can write.
func Embed(ctx context.Context, cfg EmbedConfig) (*Server, error) {
	etcd, err := embed.StartEtcd(cfg.embed())
	if err != nil {
		return nil, fmt.Errorf("etcd in %s: %w: %w", cfg.Dir, store.ErrUnavailable, err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return &Server{etcd, newClient(v3client.New(etcd.Server), cfg.Prefix)}, nil
	case err = <-etcd.Err():
	case <-etcd.Server.StopNotify():
		err = errors.New("it stopped")
	case <-ctx.Done():
		err = ctx.Err()
	}
	etcd.Close()
	return nil, fmt.Errorf("etcd in %s: %w: %w", cfg.Dir, store.ErrUnavailable, err)
}

func (c EmbedConfig) embed() *embed.Config {
	e := embed.NewConfig()
	e.Name = "scheduler"
	e.InitialCluster = e.InitialClusterFromName(e.Name)
	e.Dir = filepath.Clean(c.Dir)
	e.ListenPeerUrls, e.ListenClientUrls, e.AdvertiseClientUrls = nil, nil, nil // calls need no network, and there are no peers
	if c.Socket != "" {
		at := []url.URL{{Scheme: "unix", Host: c.Socket}}
		e.ListenClientUrls, e.AdvertiseClientUrls = at, at
	}
	e.TickMs, e.ElectionMs = 50, 500 // nobody else stands for election
	e.QuotaBackendBytes = c.Quota
	if c.Quota == 0 {
		e.QuotaBackendBytes = 512 << 20
	}
	e.AutoCompactionMode, e.AutoCompactionRetention = embed.CompactorModePeriodic, "5m"
	e.SnapshotCount, e.MaxSnapFiles, e.MaxWalFiles = 10_000, 2, 2
	e.EnableGRPCGateway = false
	e.WarningApplyDuration = time.Second
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(c.Log))
	return e
}

// Failed is closed when the server stopped by itself, for instance because it cannot write its disk.
func (s *Server) Failed() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close ends all calls and the server.
func (s *Server) Close() error {
	err := s.Client.Close()
	s.etcd.Close()
	if errors.Is(err, context.Canceled) {
		return nil // a client without a connection has nothing else to say
	}
	return err
}
