package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Plugins of containerd that are configured.
const (
	cri1     = "io.containerd.grpc.v1.cri"          // in configurations of version 2
	images   = "io.containerd.cri.v1.images"        // from version 3 on
	transfer = "io.containerd.transfer.v1.local"    // who pulls for ctr 2.x
	exportOf = "enable_remote_snapshot_annotations" // makes it tell the snapshotter which image a layer is of
)

// Snapshotter is xylem's name in containerd.
const Snapshotter = "xylem"

// DefaultCertsDir is where containerd's documentation puts hosts.toml files, and defaultConfigPath is what containerd 2.2 and
// later use unless they are told otherwise.
const (
	DefaultCertsDir   = "/etc/containerd/certs.d"
	defaultConfigPath = DefaultCertsDir + ":/etc/docker/certs.d"
)

// ContainerdConfig is what xylem has to know of containerd's configuration, in all of its versions.
type ContainerdConfig struct {
	Version      int                    `toml:"version"`
	Imports      []string               `toml:"imports"`
	Disabled     []string               `toml:"disabled_plugins"`
	Required     []string               `toml:"required_plugins"`
	ProxyPlugins map[string]ProxyPlugin `toml:"proxy_plugins"`
	Plugins      struct {
		CRI1 *struct { // containerd 1.x
			Containerd CRI      `toml:"containerd"`
			Registry   Registry `toml:"registry"`
		} `toml:"io.containerd.grpc.v1.cri"`
		CRI2 *struct { // containerd 2.x
			CRI
			Registry Registry `toml:"registry"`
		} `toml:"io.containerd.cri.v1.images"`
		Transfer struct {
			Unpack []unpacker `toml:"unpack_config"`
		} `toml:"io.containerd.transfer.v1.local"`
	} `toml:"plugins"`
}

type unpacker struct {
	Snapshotter string `toml:"snapshotter"`
}

// ProxyPlugin is a plugin that another process serves.
type ProxyPlugin struct {
	Type    string            `toml:"type"`
	Address string            `toml:"address"`
	Exports map[string]string `toml:"exports"`
}

// CRI is what concerns images of pods.
type CRI struct {
	Snapshotter        string `toml:"snapshotter"`
	DisableAnnotations bool   `toml:"disable_snapshot_annotations"`
	LocalPull          bool   `toml:"use_local_image_pull"` // implied by annotations
}

// TransferPull reports whether pods' images are pulled by the transfer service, which takes a config_path of several directories
// for the name of one: it reads no hosts.toml then.
func (c CRI) TransferPull(v Version) bool {
	return v.AtLeast(2, 1) && c.DisableAnnotations && !c.LocalPull
}

// Registry says where hosts.toml files are, and has what excludes them.
type Registry struct {
	ConfigPath string         `toml:"config_path"`
	Mirrors    map[string]any `toml:"mirrors"`
	Configs    map[string]struct {
		TLS map[string]any `toml:"tls"`
	} `toml:"configs"`
}

// CRI returns what concerns images of pods, and the table that it is in.
func (c *ContainerdConfig) CRI() (CRI, string) {
	switch {
	case c.Plugins.CRI2 != nil:
		return c.Plugins.CRI2.CRI, "plugins." + strconv.Quote(images)
	case c.Plugins.CRI1 != nil:
		return c.Plugins.CRI1.Containerd, "plugins." + strconv.Quote(cri1) + ".containerd"
	}
	return CRI{}, ""
}

// Registry returns what concerns registries. containerd 2.x takes over what a file of version 2 has.
func (c *ContainerdConfig) Registry() Registry {
	if c.Plugins.CRI2 != nil && (c.Plugins.CRI1 == nil || c.Plugins.CRI2.Registry.ConfigPath != "") {
		return c.Plugins.CRI2.Registry
	}
	if c.Plugins.CRI1 != nil {
		return c.Plugins.CRI1.Registry
	}
	return Registry{}
}

// Dump asks containerd itself for its configuration, which knows its defaults and imports. Without a file, these are the defaults.
func Dump(ctx context.Context, binary, file string) (*ContainerdConfig, error) {
	args := []string{"config", "dump"}
	if _, err := os.Stat(file); err == nil {
		args = append([]string{"--config", file}, args...)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	var c ContainerdConfig
	if err := toml.Unmarshal(out, &c); err != nil {
		return nil, fmt.Errorf("configuration of containerd: %w", err)
	}
	return &c, nil
}

// Version of containerd. The zero Version is unknown.
type Version struct{ Major, Minor int }

// AtLeast reports whether v is the version or a later one.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// DefaultConfigPath is the config_path that this version uses when it has none.
func (v Version) DefaultConfigPath() string {
	if v.AtLeast(2, 2) {
		return defaultConfigPath
	}
	return ""
}

var versionText = regexp.MustCompile(`^v?(\d+)\.(\d+)`)

// ParseVersion reads a version such as v2.4.2 or 1.6.20~ds1.
func ParseVersion(text string) (v Version, err error) {
	m := versionText.FindStringSubmatch(text)
	if m == nil {
		return v, fmt.Errorf("%q is no version of containerd, as 1.7 or 2.2", text)
	}
	v.Major, _ = strconv.Atoi(m[1])
	v.Minor, _ = strconv.Atoi(m[2])
	if !v.AtLeast(1, 6) {
		return v, fmt.Errorf("containerd %s is too old, xylem needs 1.6 or later", text)
	}
	return v, nil
}

// BinaryVersion asks a binary of containerd for its version.
func BinaryVersion(ctx context.Context, binary string) (Version, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return Version{}, fmt.Errorf("%s --version: %w", binary, err)
	}
	fields := strings.Fields(string(out)) // "containerd <package> <version> <revision>"
	if len(fields) < 3 {
		return Version{}, fmt.Errorf("%s --version: unexpected output %q", binary, out)
	}
	return ParseVersion(fields[2])
}

// loaded is a configuration with the file that it is in and the one that xylem's settings go to.
type loaded struct {
	version Version
	binary  string // "" if there is none
	main    *state
	dropIn  *state // nil: xylem's settings go into main
}

// target is the file that gets xylem's settings.
func (l *loaded) target() *state {
	if l.dropIn != nil {
		return l.dropIn
	}
	return l.main
}

// check returns what containerd would make of the two texts, or what it does not like about them. It reads copies.
func (l *loaded) check(ctx context.Context, main, dropIn []byte) (*ContainerdConfig, error) {
	c, err := parseConfig(main)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.main.path, err)
	}
	if l.binary == "" {
		if err := toml.Unmarshal(dropIn, c); err != nil {
			return nil, err
		}
		return c, nil
	}
	dir, err := os.MkdirTemp("", "xylem-setup")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "config.toml")
	text, err := l.withImports(main, c.Imports, dir, dropIn)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return nil, err
	}
	c, err = Dump(ctx, l.binary, file)
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), file, l.main.path))
	}
	return c, nil
}

// withImports returns main with absolute imports, and the text of dropIn instead of the file.
func (l *loaded) withImports(main []byte, imports []string, dir string, dropIn []byte) ([]byte, error) {
	var list []string
	for _, pattern := range imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(l.main.path), pattern)
		}
		paths := []string{pattern}
		if strings.Contains(pattern, "*") {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return nil, fmt.Errorf("%s: imports: %w", l.main.path, err)
			}
			if l.dropIn != nil && within(pattern, l.dropIn.path) {
				found = append(found, l.dropIn.path)
			}
			slices.Sort(found)
			paths = slices.Compact(found)
		}
		list = append(list, paths...)
	}
	var quoted []string
	for _, path := range list {
		if l.dropIn != nil && path == l.dropIn.path {
			if dropIn == nil {
				continue
			}
			path = filepath.Join(dir, "xylem.toml")
			if err := os.WriteFile(path, dropIn, 0o600); err != nil {
				return nil, err
			}
		}
		quoted = append(quoted, strconv.Quote(path))
	}
	d := &document{main}
	d.remove("imports")
	if len(quoted) > 0 {
		d.insertFirst("imports = [" + strings.Join(quoted, ", ") + "]\n")
	}
	return d.text, nil
}

func within(pattern, path string) bool {
	ok, err := filepath.Match(pattern, path)
	return ok && err == nil
}

// parseConfig reads one file, without containerd's defaults and imports.
func parseConfig(text []byte) (*ContainerdConfig, error) {
	if _, err := newDocument(text); err != nil {
		return nil, err
	}
	var c ContainerdConfig
	err := toml.Unmarshal(text, &c)
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		err = fmt.Errorf("line %d: %w", line, err)
	}
	return &c, err
}
