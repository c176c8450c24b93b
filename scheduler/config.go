package scheduler

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Config is everything that can be set on the scheduler, in TOML or by flags. Default gives the defaults that the fields name.
type Config struct {
	// Root holds what must survive a reboot: the embedded etcd and the default join token. Default /var/lib/xylem/scheduler.
	Root string `toml:"root"`
	// State holds the admin socket, scheduler.sock. Default /run/xylem.
	State string `toml:"state"`
	// Listen is the TCP address of the API, for agents and users over TLS, and for users on this machine
	// without. Default 127.0.0.1:9760.
	Listen string `toml:"listen"`
	// Advertise is the URL by which agents and other schedulers know this one, as "https://scheduler-0.example:9760". It is also its name
	// in the cluster: it must differ among schedulers and stay the same. Default: made of Listen.
	Advertise string `toml:"advertise"`
	// Names are more host names and IP addresses that the server's certificate is valid for. Default: none; the host of Advertise,
	// localhost, 127.0.0.1 and ::1 are always in it.
	Names []string `toml:"names"`
	// Admin is the TCP address of /metrics, /livez and /readyz, loopback only. Default 127.0.0.1:9761; "" for none. The same and
	// the calls of the xylem command are on the admin socket.
	Admin string `toml:"admin"`
	// Etcd are the endpoints of an etcd cluster that keeps the state, as "https://etcd-0:2379", which is needed for more than one
	// scheduler. Default: none; an embedded etcd under Root.
	Etcd []string `toml:"etcd"`
	// EtcdPrefix begins all keys in etcd. Default "/xylem/".
	EtcdPrefix string `toml:"etcd_prefix"`
	// EtcdCA, EtcdCert and EtcdKey are PEM files for TLS with the cluster. Default: the system's certificates, no client certificate.
	EtcdCA   string `toml:"etcd_ca"`
	EtcdCert string `toml:"etcd_cert"`
	EtcdKey  string `toml:"etcd_key"`
	// Stripes of all trees: 1, 2 or 4. It is fixed when the cluster is created. Default 2.
	Stripes int `toml:"stripes"`
	// Budget is how many children an agent without a budget of its own may feed in all trees together. Default 64.
	Budget int `toml:"budget"`
	// Heartbeat is how often agents say how they are. Shorter finds failures sooner, and costs about 0.1 ms of a core for each.
	// Default 1s.
	Heartbeat Duration `toml:"heartbeat"`
	// Timeout is how long an agent may be silent before it counts as failed, at least twice Heartbeat. Default 3s.
	Timeout Duration `toml:"timeout"`
	// Grace is the same for agents of trees that this scheduler took over from another, or from its own former run: they have to
	// find it first. Default 10s.
	Grace Duration `toml:"grace"`
	// Lease is how long other schedulers wait for a sign of life of this one before they take its trees over, in whole seconds,
	// at least 2s. Default 2s.
	Lease Duration `toml:"lease"`
	// CertificateTTL is how long agents' certificates are valid. They are renewed when two thirds are over; an agent that was off for
	// longer joins again. Default 168h.
	CertificateTTL Duration `toml:"certificate_ttl"`
	// RequestsPerSecond bounds the calls of one agent; it may save up ten seconds' worth. Default 50.
	RequestsPerSecond int `toml:"requests_per_second"`
	// Connections bounds the connections of all agents and users together. Default 20000.
	Connections int `toml:"connections"`
	// AuthLoopback demands access keys of users on this machine too. Default false: whoever can connect from the machine itself may make
	// and invoke functions.
	AuthLoopback bool `toml:"auth_loopback"`
	// Queue is how many invocations of a version of a function may wait for an instance; more are refused with 429. Default 1000.
	Queue int `toml:"queue"`

	// Log receives the scheduler's log lines. Default: discarded.
	Log *slog.Logger `toml:"-"`
}

// Default returns the configuration that an empty file means.
func Default() Config {
	return Config{
		Root: "/var/lib/xylem/scheduler", State: "/run/xylem", Listen: "127.0.0.1:9760", Admin: "127.0.0.1:9761", EtcdPrefix: "/xylem/",
		Stripes: 2, Budget: 64, Heartbeat: Duration{Duration: time.Second}, Timeout: Duration{Duration: 3 * time.Second}, Grace: Duration{Duration: 10 * time.Second},
		Lease: Duration{Duration: 2 * time.Second}, CertificateTTL: Duration{Duration: 7 * 24 * time.Hour}, RequestsPerSecond: 50, Connections: 20_000, Queue: 1000,
	}
}

// Socket returns the path of the admin socket.
func (c Config) Socket() string { return filepath.Join(c.State, "scheduler.sock") }

// TokenFile returns the path of the join token that is made with the cluster.
func (c Config) TokenFile() string { return filepath.Join(c.Root, "join-token") }

func (c *Config) validate() error {
	switch {
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.State):
		return fmt.Errorf("configuration: root %q and state %q must be absolute paths", c.Root, c.State)
	case !slices.Contains([]int{1, 2, 4}, c.Stripes):
		return fmt.Errorf("configuration: stripes = %d, want 1, 2 or 4", c.Stripes)
	case c.Heartbeat.Duration < 10*time.Millisecond || c.Timeout.Duration < 2*c.Heartbeat.Duration || c.Grace.Duration < c.Timeout.Duration:
		return errors.New("configuration: heartbeat must be at least 10ms, timeout at least twice heartbeat, grace at least timeout")
	case c.Lease.Duration < 2*time.Second || c.Lease.Duration%time.Second != 0:
		return fmt.Errorf("configuration: lease = %v, want whole seconds, at least 2s", c.Lease)
	case c.CertificateTTL.Duration < time.Second:
		return fmt.Errorf("configuration: certificate_ttl = %v, want at least 1s, better days", c.CertificateTTL)
	case c.Budget <= 0 || c.RequestsPerSecond <= 0 || c.Connections <= 0 || c.Queue <= 0:
		return errors.New("configuration: budget, requests_per_second, connections and queue must be positive")
	}
	if err := c.validateAddresses(); err != nil {
		return err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) validateAddresses() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("configuration: listen = %q, want host:port: %w", c.Listen, err)
	}
	if c.Admin != "" {
		if at, err := netip.ParseAddrPort(c.Admin); err != nil || !at.Addr().IsLoopback() {
			return fmt.Errorf("configuration: admin = %q must be a loopback IP address and a port: what it serves is not authenticated", c.Admin)
		}
	}
	if c.Advertise != "" {
		if u, err := url.Parse(c.Advertise); err != nil || u.Scheme != "https" || u.Port() == "" || u.Path != "" {
			return fmt.Errorf("configuration: advertise = %q, want https://host:port", c.Advertise)
		}
	}
	return nil
}

// Duration is a time.Duration that is written as "1m30s".
type Duration = api.Duration
