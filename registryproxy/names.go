package registryproxy

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Patterns of the distribution specification.
var (
	repoPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostPattern = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$`)
)

const (
	maxRepo = 255 // bytes, as most registries have it
	maxHost = 253
)

// namespace returns the registry that the query names with ns, or otherwise.
func namespace(query url.Values, otherwise string) (string, error) {
	all := query["ns"]
	switch {
	case len(all) > 1:
		return "", fmt.Errorf("ns is given %d times", len(all))
	case len(all) == 1:
		return ParseHost(all[0])
	}
	return otherwise, nil
}

// ParseHost returns a registry's "host" or "host:port" in lower case. It refuses everything else, and addresses at which no
// registry can be: unspecified, multicast and link-local ones, among them the metadata service of clouds.
func ParseHost(s string) (string, error) {
	s = strings.ToLower(s)
	host, port, err := splitHost(s)
	if err != nil {
		return "", fmt.Errorf("registry %.80q: %w", s, err)
	}
	if err := checkPort(port); err != nil {
		return "", fmt.Errorf("registry %.80q: %w", s, err)
	}
	if err := checkHost(host); err != nil {
		return "", fmt.Errorf("registry %.80q: %w", s, err)
	}
	return s, nil
}

// splitHost takes off the port, with its colon.
func splitHost(s string) (host, port string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok = strings.Cut(rest, "]")
		if addr, err := netip.ParseAddr(host); !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", "", fmt.Errorf("no IPv6 address")
		}
		return host, port, nil
	}
	if i := strings.IndexByte(s, ':'); i >= 0 {
		return s[:i], s[i:], nil
	}
	return s, "", nil
}

func checkPort(port string) error {
	if port == "" {
		return nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
	if err != nil || n == 0 || port != fmt.Sprintf(":%d", n) {
		return fmt.Errorf("no port")
	}
	return nil
}

// metadataHosts are names of metadata services.
var metadataHosts = []string{"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}

func checkHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		if !MayBeRegistry(addr) {
			return fmt.Errorf("no address of a registry")
		}
		return nil
	}
	if len(host) > maxHost || !hostPattern.MatchString(host) {
		return fmt.Errorf("no host name")
	}
	for _, m := range metadataHosts {
		if host == m {
			return fmt.Errorf("no address of a registry")
		}
	}
	// Resolvers take "2852039166" and "0xa9fea9fe" for IPv4 addresses.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.HasPrefix(last, "0x") || last[0] >= '0' && last[0] <= '9' && strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("no host name")
	}
	return nil
}

// metadataAddrs are metadata services of clouds that are not link-local.
var metadataAddrs = []netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16")}

// MayBeRegistry says whether a registry can be at an address: not at unspecified, multicast, link-local ones, nor at
// the metadata services of clouds.
func MayBeRegistry(addr netip.Addr) bool {
	addr = addr.Unmap()
	for _, m := range metadataAddrs {
		if addr == m {
			return false
		}
	}
	return addr.IsValid() && !addr.IsUnspecified() && !addr.IsMulticast() && !addr.IsLinkLocalUnicast() && addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// parseDigest is strict: lower case, the right length, an algorithm that can be verified here.
func parseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	return d, d.Validate()
}

// isHub says whether a host is one of the names of Docker Hub, whose official images lie below "library".
func isHub(host string) bool {
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io":
		return true
	}
	return false
}
