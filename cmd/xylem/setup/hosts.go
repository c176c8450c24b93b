package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	hostsFile    = "hosts.toml"
	defaultHosts = "_default" // directory of the hosts.toml for registries without one of their own
	capabilities = `["pull", "resolve"]`
)

// findCertsDir decides where hosts.toml files go: where containerd looks for them already. It refuses what would make
// containerd refuse its configuration, or lose settings of registries.
func (p *plan) findCertsDir(c *ContainerdConfig) error {
	if p.Proxy == "" {
		return nil
	}
	registry := c.Registry()
	for host, config := range registry.Configs {
		if len(config.TLS) > 0 {
			return refuse(fmt.Sprintf("move them to %s below %s first", filepath.Join(host, hostsFile), DefaultCertsDir),
				"%s: the settings registry.configs.%q.tls exclude hosts.toml files", p.main.path, host)
		}
	}
	for host := range registry.Mirrors {
		return refuse(fmt.Sprintf("move them to %s below %s first", filepath.Join(host, hostsFile), DefaultCertsDir),
			"%s: the settings registry.mirrors.%q exclude hosts.toml files", p.main.path, host)
	}
	list := registry.ConfigPath
	if list == "" {
		list = p.version.DefaultConfigPath()
	}
	dirs := filepath.SplitList(list)
	switch {
	case p.CertsDir == "" && len(dirs) > 0:
		p.CertsDir = dirs[0]
	case p.CertsDir == "":
		p.CertsDir = DefaultCertsDir
	case list != p.version.DefaultConfigPath() && !slices.Contains(dirs, p.CertsDir):
		return refuse("leave --certs-dir out, or change config_path", "%s: containerd reads %s from %s, not from %s", p.main.path, hostsFile, list, p.CertsDir)
	}
	for _, dir := range dirs {
		if entries, _ := os.ReadDir(dir); dir != p.CertsDir && len(entries) > 0 {
			return refuse(fmt.Sprintf("move it to %s first, where it goes on to be read", p.CertsDir),
				"config_path of containerd is %q, and %s would no longer be read", list, filepath.Join(dir, entries[0].Name()))
		}
	}
	return nil
}

// hosts edits the hosts.toml files.
func (p *plan) hosts() error {
	if p.Proxy == "" {
		return nil
	}
	if len(p.Registries) == 0 {
		for _, other := range p.ownHosts() {
			p.note("%s is not pulled through the proxy, because it has settings of its own: name it with --registry", other)
		}
		return p.editHosts(defaultHosts, "")
	}
	for _, r := range p.Registries {
		if err := p.editHosts(hostDirectory(p.CertsDir, r.Host), r.server()); err != nil {
			return err
		}
	}
	return nil
}

// ownHosts lists the registries to which _default does not apply.
func (p *plan) ownHosts() (hosts []string) {
	entries, _ := os.ReadDir(p.CertsDir)
	for _, e := range entries {
		ours := p.record.find(filepath.Join(p.CertsDir, e.Name(), hostsFile))
		if e.IsDir() && e.Name() != defaultHosts && (ours == nil || ours.Existed) {
			hosts = append(hosts, e.Name())
		}
	}
	return hosts
}

// hostDirectory is the name of a registry's directory. containerd looks for host_port_ first, then for host:port.
func hostDirectory(dir, host string) string {
	if name, port, ok := strings.Cut(host, ":"); ok {
		if other := name + "_" + port + "_"; isDir(filepath.Join(dir, other)) {
			return other
		}
	}
	return host
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// server is the URL of the registry itself.
func (u Upstream) server() string {
	switch {
	case u.Host == "docker.io":
		return "https://registry-1.docker.io"
	case u.PlainHTTP:
		return "http://" + u.Host
	}
	return "https://" + u.Host
}

// editHosts puts the proxy before all hosts of a file. A file of the user keeps its server and its other mirrors.
func (p *plan) editHosts(directory, server string) error {
	s, err := p.look(filepath.Join(p.CertsDir, directory, hostsFile))
	if err != nil {
		return err
	}
	if s.pristine == nil {
		if found, _ := filepath.Glob(filepath.Join(filepath.Dir(s.path), "*.c*rt")); len(found) > 0 {
			return refuse("name the certificates in a hosts.toml there, and run it again; nothing was changed",
				"%s: containerd would no longer use it beside a %s", found[0], hostsFile)
		}
	}
	err = p.apply(s, func(text []byte) ([]byte, error) {
		d, err := newDocument(text)
		if err == nil {
			err = p.putProxyFirst(d)
		}
		if err == nil && text == nil && server != "" {
			d.insertFirst("server = " + strconv.Quote(server) + "\n\n")
		}
		return d.text, err
	})
	if err != nil {
		return refuse("correct it; nothing was changed", "%s: %w", s.path, err)
	}
	return nil
}

func (p *plan) putProxyFirst(d *document) error {
	table := []string{"host", p.Proxy}
	if d.has(table...) {
		return d.set(capabilities, append(table, "capabilities")...)
	}
	block := fmt.Sprintf("[%s]\n  capabilities = %s\n", dotted(table), capabilities)
	for _, e := range d.entries() {
		if e.header && e.path[0] == "host" {
			d.insert(d.lineStart(e.start), block+"\n")
			return nil
		}
	}
	d.add(block)
	return nil
}

// Hosts says where a hosts.toml leads: to the proxy, or only elsewhere.
type Hosts struct {
	Dir      string // of config_path
	Registry string // or "_default"
	Proxied  bool   // one of its hosts is the proxy
	Shadowed string // directory that containerd finds first for the same registry, if there is one
}

// ReadHosts lists the registries that have settings in the directories of a config_path.
func ReadHosts(configPath, proxy string) ([]Hosts, error) {
	var all []Hosts
	for _, dir := range filepath.SplitList(configPath) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		before := len(all)
		for _, e := range entries {
			if !isDir(filepath.Join(dir, e.Name())) {
				continue
			}
			h := Hosts{Dir: dir, Registry: e.Name(), Shadowed: shadow(all[:before], e.Name())}
			if h.Proxied, err = leadsTo(h.File(), proxy); err != nil {
				return nil, err
			}
			all = append(all, h)
		}
	}
	return all, nil
}

// shadow returns the directory that hides those of the name in later directories: the same, or a _default.
func shadow(earlier []Hosts, registry string) string {
	for _, h := range earlier {
		if h.Registry == registry || h.Registry == defaultHosts {
			return filepath.Join(h.Dir, h.Registry)
		}
	}
	return ""
}

// leadsTo reports whether a hosts.toml has the proxy among its hosts.
func leadsTo(file, proxy string) (bool, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var hosts struct {
		Host map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(text, &hosts); err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	_, ok := hosts.Host[proxy]
	return ok, nil
}

// File is the path of the hosts.toml.
func (h Hosts) File() string { return filepath.Join(h.Dir, h.Registry, hostsFile) }
