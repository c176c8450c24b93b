package main

import (
	"path/filepath"
	"strings"

	"github.com/xylem-project/xylem/cmd/xylem/setup"
)

// checkHosts follows containerd's search for hosts.toml files. Without the proxy everything works, so nothing here is FAIL.
func (d *doctor) checkHosts(c *setup.ContainerdConfig, version setup.Version) finding {
	const check, install = "registry proxy", "run 'xylem setup containerd'"
	proxy := proxyURL(d.config)
	if proxy == "" {
		return ok(check, "there is none on this node")
	}
	configPath := c.Registry().ConfigPath
	if configPath == "" {
		configPath = version.DefaultConfigPath()
	}
	if configPath == "" {
		return warn(check, install, "containerd reads no hosts.toml, so pods pull past the proxy")
	}
	hosts, err := setup.ReadHosts(configPath, proxy)
	if err != nil {
		return warn(check, "correct it", "%v", err)
	}
	through, past, misplaced := sortHosts(configPath, hosts)
	cri, _ := c.CRI()
	switch {
	case misplaced != nil && misplaced.Shadowed != "":
		return warn(check, install, "%s leads to the proxy, but containerd finds %s first", misplaced.File(), misplaced.Shadowed)
	case misplaced != nil:
		return warn(check, install, "%s leads to the proxy from the second directory of config_path %q, where a _default in the first would hide it",
			misplaced.File(), configPath)
	case len(through) == 0:
		return warn(check, install, "no hosts.toml in %s leads to %s, so pods pull past the proxy", configPath, proxy)
	case strings.Contains(configPath, ":") && cri.TransferPull(version):
		return warn(check, install, "containerd takes config_path %q for the name of one directory, and reads no hosts.toml", configPath)
	case len(past) > 0:
		return ok(check, "%s through %s; settings of their own have %s", strings.Join(through, ", "), proxy, strings.Join(past, ", "))
	}
	return ok(check, "%s through %s", strings.Join(through, ", "), proxy)
}

// sortHosts says which registries are pulled through the proxy, which are not, and which shall be but may not.
func sortHosts(configPath string, hosts []setup.Hosts) (through, past []string, misplaced *setup.Hosts) {
	first := filepath.SplitList(configPath)[0]
	for _, h := range hosts {
		switch {
		case h.Proxied && h.Dir != first:
			misplaced = &h
		case h.Proxied && h.Registry == "_default":
			through = append(through, "all registries")
		case h.Proxied:
			through = append(through, h.Registry)
		case h.Shadowed == "":
			past = append(past, h.Registry)
		}
	}
	return through, past, misplaced
}
