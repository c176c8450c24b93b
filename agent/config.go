package agent

import (
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// Config is everything that can be set on the agent, in TOML or by flags. Default gives the defaults that the fields name.
type Config struct {
	// Root holds what must survive a reboot: block cache, images, snapshots, keys. Default /var/lib/xylem.
	Root string `toml:"root"`
	// State holds sockets and mounts. Default /run/xylem. Its path is part of every mount's options: keep it short.
	State string `toml:"state"`
	// Admin is the TCP address of /metrics, /livez, /readyz and /debug, loopback only. Default 127.0.0.1:9750; "" for none.
	// The same and the calls of the xylem command are on the unix socket admin.sock under State.
	Admin string `toml:"admin"`
	// CacheBudget is how much disk blocks and decompressed data may take together, as "40GiB". What running containers
	// need is never evicted, so it can be exceeded. Default 40GiB.
	CacheBudget Size `toml:"cache_budget"`
	// MountWay is auto, file, loop or tree: see fuse/erofs. Default auto: the first that works here.
	MountWay string `toml:"mount_way"`
	// ReadTimeout bounds a container's read that misses the cache, as "30s"; after it the read fails with EIO. Default 30s.
	ReadTimeout Duration `toml:"read_timeout"`
	// ReadAhead is the kernel's readahead on mounted images. Larger reads more than is needed. Default 512KiB.
	ReadAhead Size `toml:"read_ahead"`
	// Connections bounds the concurrent requests to one registry. Default 8.
	Connections int `toml:"connections"`
	// RegistryLimit bounds the bytes per second that this node reads from all registries together, as "50MiB", for containers and clients of
	// the proxy alike. Default 0: none.
	RegistryLimit Size `toml:"registry_limit"`
	// Prefetch fetches the startup blocks of an image as soon as it is known, where a record of them exists. Default true.
	Prefetch bool `toml:"prefetch"`
	// BackgroundFetch is how much of an image without a startup record is fetched in the background as soon as it is known, the likeliest
	// blocks first, as "512MiB"; 0 for what is read only. Default 512MiB.
	BackgroundFetch Size `toml:"background_fetch"`
	// Fill fetches all other blocks of every image in the background too, after those that its start needs, so that images no longer
	// depend on registry and peers. Default false.
	Fill bool `toml:"fill"`
	// Convert says what happens to a pulled image that has no block image: off; background, to convert it for the next time, once in the
	// cluster; or wait, the same with pulls waiting for it up to ConvertWait. Default off.
	Convert string `toml:"convert"`
	// ConvertWait is how long a pull waits for the block image, counted from the first pull, before the image is unpacked. Default 30s.
	ConvertWait Duration `toml:"convert_wait"`
	// ConvertPush puts what this node converted into the repository of its source too, with the node's credentials. Default false.
	ConvertPush bool `toml:"convert_push"`
	// TrustCluster has this node use what agents of its cluster converted, as the schedulers name it. Who takes over one of them can then give
	// images other contents on all. With false only TrustedKeys and this node's own key count. Default true.
	TrustCluster bool `toml:"trust_cluster"`
	// CRI is the unix socket of containerd's CRI, as /run/containerd/containerd.sock. If set, the agent serves the CRI image
	// service on cri.sock under State, hands calls on to that one and reads blocks with the credentials of pulls: point the
	// kubelet's --image-service-endpoint at it where pods have image pull secrets. Default "": not served.
	CRI string `toml:"cri"`
	// TrustedKeys are PEM files with ed25519 public keys of converters. This node's own key is always trusted.
	TrustedKeys []string `toml:"trusted_keys"`
	// CredentialProviderConfig is the kubelet's CredentialProviderConfig, a YAML or JSON file or a directory of them: its plugins are asked
	// for the credentials of images for which docker's configuration has none. They run as the agent does. Default "": no plugins.
	CredentialProviderConfig string `toml:"credential_provider_config"`
	// CredentialProviderBinDir is the directory with the plugins' programs, as the kubelet's --image-credential-provider-bin-dir. Default
	// "": must be set if credential_provider_config is.
	CredentialProviderBinDir string `toml:"credential_provider_bin_dir"`
	// Registries holds settings per registry host ("host" or "host:port").
	Registries map[string]RegistryConfig `toml:"registries"`

	// Schedulers are the URLs of the cluster's schedulers, as https://10.0.0.1:9760, any of them. Default none: the agent reads
	// registries only.
	Schedulers []string `toml:"schedulers"`
	// JoinTokenFile is a file with the token that lets the agent join the cluster the first time. Default none.
	JoinTokenFile string `toml:"join_token_file"`
	// Listen is the TCP address at which other agents get blocks, authenticated both ways. Default 0.0.0.0:9752.
	Listen netip.AddrPort `toml:"listen"`
	// Advertise are the addresses at which others reach Listen, if not those of this machine's interfaces.
	Advertise []netip.AddrPort `toml:"advertise"`
	// Zone is where the machine is, as a rack or a zone of a cloud: agents feed each other inside a zone where they can. Default "".
	Zone string `toml:"zone"`
	// UploadLimit and DownloadLimit bound the bytes of blocks per second to and from other agents, as "50MiB". Default 0: none.
	UploadLimit   Size `toml:"upload_limit"`
	DownloadLimit Size `toml:"download_limit"`
	// Children is how many other agents this one may feed, over all images. Default 0: what the scheduler says.
	Children int `toml:"children"`
	// TreeIdle is how long the agent goes on feeding others with an image that it does not use itself. Default 10m.
	TreeIdle Duration `toml:"tree_idle"`

	// Proxy are the settings of the registry proxy.
	Proxy ProxyConfig `toml:"proxy"`
	// Functions are the settings of the functions that the node runs.
	Functions FunctionsConfig `toml:"functions"`

	// Log receives the agent's log lines. Default: discarded.
	Log *slog.Logger `toml:"-"`
}

// RegistryConfig are the settings of one registry host.
type RegistryConfig struct {
	// PlainHTTP talks http. Default: only to loopback addresses.
	PlainHTTP bool `toml:"plain_http"`
	// CA is a PEM file with certificates trusted for this host beside the system's.
	CA string `toml:"ca"`
	// ClientCert and ClientKey are PEM files of the certificate that this host is shown. Default: none.
	ClientCert string `toml:"client_cert"`
	ClientKey  string `toml:"client_key"`
	// Mirrors are hosts that the proxy asks before this one, in their order. They get no credentials of clients. Default: none.
	Mirrors []string `toml:"mirrors"`
	// Limit bounds the bytes per second that are read from this host, beside RegistryLimit. Default 0: none.
	Limit Size `toml:"limit"`
}

// Default returns the configuration that an empty file means.
func Default() Config {
	return Config{
		Root: "/var/lib/xylem", State: "/run/xylem", Admin: "127.0.0.1:9750", CacheBudget: 40 << 30, MountWay: "auto",
		ReadTimeout: Duration{30 * time.Second}, ReadAhead: blockfmt.BlockSize, Connections: 8, Prefetch: true, BackgroundFetch: 512 << 20, Convert: "off",
		ConvertWait: Duration{30 * time.Second}, TrustCluster: true,
		Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), 9752), TreeIdle: Duration{10 * time.Minute},
		Proxy: defaultProxy(), Functions: defaultFunctions(),
	}
}

// Socket returns the path of the snapshotter's socket.
func (c Config) Socket() string { return filepath.Join(c.State, "agent.sock") }

// AdminSocket returns the path of the admin socket.
func (c Config) AdminSocket() string { return filepath.Join(c.State, "admin.sock") }

// CRISocket returns the path of the CRI image service's socket.
func (c Config) CRISocket() string { return filepath.Join(c.State, "cri.sock") }

// KeyFile returns the path of this node's converter key.
func (c Config) KeyFile() string { return filepath.Join(c.Root, "converter.key") }

func (c *Config) validate() error {
	switch {
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.State):
		return fmt.Errorf("configuration: root %q and state %q must be absolute paths", c.Root, c.State)
	case strings.ContainsAny(c.Root+c.State, ":,\\"):
		return fmt.Errorf("configuration: root %q and state %q must not contain ':', ',' or '\\': they become mount options", c.Root, c.State)
	case c.Convert != "off" && c.Convert != "background" && c.Convert != "wait":
		return fmt.Errorf("configuration: convert = %q, want off, background or wait", c.Convert)
	case c.ConvertWait.Duration <= 0:
		return fmt.Errorf("configuration: convert_wait must be positive; convert = \"background\" does not wait")
	case (c.CredentialProviderConfig == "") != (c.CredentialProviderBinDir == ""):
		return fmt.Errorf("configuration: credential_provider_config and credential_provider_bin_dir must be set together")
	case c.CredentialProviderConfig != "" && !(filepath.IsAbs(c.CredentialProviderConfig) && filepath.IsAbs(c.CredentialProviderBinDir)):
		return fmt.Errorf("configuration: credential_provider_config %q and credential_provider_bin_dir %q must be absolute paths",
			c.CredentialProviderConfig, c.CredentialProviderBinDir)
	case c.TreeIdle.Duration <= 0 || c.Children < 0:
		return fmt.Errorf("configuration: tree_idle must be positive, children not negative")
	case c.ReadTimeout.Duration <= 0 || c.CacheBudget <= 0 || c.Connections <= 0 || c.ReadAhead < blockfmt.PageSize:
		return fmt.Errorf("configuration: read_timeout, cache_budget and connections must be positive, read_ahead at least 4KiB")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := c.Functions.validate(c.Schedulers); err != nil {
		return err
	}
	if err := c.validateLimits(); err != nil {
		return err
	}
	return c.Proxy.validate()
}

// minLimit is the least limit of bytes per second: with less, manifests would take longer than read_timeout.
const minLimit = 64 << 10

func (c *Config) validateLimits() error {
	limits := map[string]Size{"registry_limit": c.RegistryLimit}
	for host, r := range c.Registries {
		limits[fmt.Sprintf("limit of registry %s", host)] = r.Limit
	}
	for name, limit := range limits {
		if limit != 0 && limit < minLimit {
			return fmt.Errorf("configuration: %s = %d bytes per second, want 0 for none or at least 64KiB", name, limit)
		}
	}
	return nil
}

// Duration is a time.Duration that is written as "1m30s".
type Duration struct{ time.Duration }

// UnmarshalText parses what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Size is a number of bytes that is written as "512KiB", "40GiB" or a plain number.
type Size int64

var units = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}, {"", 1}}

// UnmarshalText parses a whole number with an optional unit B, KiB, MiB, GiB or TiB.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("size %q is not a whole number with an optional unit B, KiB, MiB, GiB or TiB", text)
}

// MarshalText writes the largest unit that loses nothing.
func (s Size) MarshalText() ([]byte, error) {
	for i := 3; i >= 0; i-- {
		if s > 0 && int64(s)%units[i].bytes == 0 {
			return fmt.Appendf(nil, "%d%s", int64(s)/units[i].bytes, units[i].suffix), nil
		}
	}
	return fmt.Appendf(nil, "%dB", int64(s)), nil
}
