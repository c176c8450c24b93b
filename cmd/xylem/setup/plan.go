package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Options say what containerd is to use, and where its files are.
type Options struct {
	ConfigFile string // of containerd; it need not exist
	// CertsDir has a directory with a hosts.toml per registry. Empty: the one that the configuration names, else DefaultCertsDir.
	CertsDir string
	Binary   string // of containerd, to check what is written; it need not exist
	// Version of containerd. Zero: what the binary says. A binary of another version is not asked.
	Version Version
	// Registries are those that are pulled through the proxy. None: all that have no hosts.toml of their own.
	Registries []Upstream
	Proxy      string // URL of the agent's registry proxy; empty: nothing is pulled through one
	Socket     string // of the agent's snapshotter
	Pods       bool   // let pods use the snapshotter
	DryRun     bool
}

// Upstream is a registry that is pulled through the proxy.
type Upstream struct {
	Host      string // and port
	PlainHTTP bool
}

// Error is a refusal: nothing was changed.
type Error struct {
	Err    error
	Advice string // what to do
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func refuse(advice, format string, args ...any) error {
	return &Error{fmt.Errorf(format, args...), advice}
}

// plan finds out what the files have to be.
type plan struct {
	Options
	*loaded
	record *record
	files  []*state
	notes  []string
}

func newPlan(ctx context.Context, o Options) (*plan, error) {
	r, err := loadRecord(BackupDir(o.ConfigFile))
	if err != nil {
		return nil, err
	}
	p := &plan{Options: o, record: r, loaded: &loaded{version: o.Version}}
	if p.main, err = p.look(o.ConfigFile); err != nil {
		return nil, err
	}
	if p.binary, err = exec.LookPath(o.Binary); err != nil {
		p.binary = ""
	}
	if err := p.settings(ctx); err != nil {
		return nil, err
	}
	return p, p.others()
}

// look adds a file to the plan.
func (p *plan) look(path string) (*state, error) {
	s, err := p.record.look(path)
	if err != nil {
		return nil, err
	}
	for _, line := range s.left {
		p.note("%s: left as it was changed since the last setup: %s", s.path, strings.TrimSpace(line))
	}
	p.files = append(p.files, s)
	return s, nil
}

// note tells the user something, once.
func (p *plan) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(p.notes, text) {
		p.notes = append(p.notes, text)
	}
}

// others adds the files that only the last setup wrote, so that they become what they were.
func (p *plan) others() error {
	for _, f := range p.record.Files {
		known := false
		for _, s := range p.files {
			known = known || s.path == f.Path
		}
		if known {
			continue
		}
		if _, err := p.look(f.Path); err != nil {
			return err
		}
	}
	return nil
}

// settings edits containerd's configuration, and asks containerd whether it is as wanted then.
func (p *plan) settings(ctx context.Context) error {
	const correct = "correct it; nothing was changed"
	file, err := parseConfig(p.main.pristine)
	if err != nil {
		return refuse(correct, "%s: %w", p.main.path, err)
	}
	if err := p.findVersion(ctx, file); err != nil {
		return err
	}
	if err := p.findDropIn(file); err != nil {
		return err
	}
	before, err := p.check(ctx, p.main.pristine, p.pristineDropIn())
	if err != nil {
		return refuse(correct, "%w", err)
	}
	if err := p.findCertsDir(before); err != nil {
		return err
	}
	if err := p.apply(p.target(), p.edit(before)); err != nil {
		return refuse("edit it, and run it again; nothing was changed", "%s: %w", p.target().path, err)
	}
	var dropIn []byte
	if p.dropIn != nil {
		dropIn = p.dropIn.wanted
	}
	after, err := p.check(ctx, p.main.wanted, dropIn)
	if err != nil {
		return refuse(correct, "with xylem's settings: %w", err)
	}
	if what := p.missing(after); what != "" {
		return refuse("take that out there; nothing was changed", "%s: a file that it imports overrides %s", p.main.path, what)
	}
	return p.hosts()
}

func (p *plan) pristineDropIn() []byte {
	if p.dropIn == nil {
		return nil
	}
	return p.dropIn.pristine
}

// findVersion decides which containerd the configuration is for.
func (p *plan) findVersion(ctx context.Context, file *ContainerdConfig) (err error) {
	switch {
	case p.version != Version{}:
		if v, err := BinaryVersion(ctx, p.binary); err != nil || v != p.version {
			p.binary = "" // another one, that cannot be asked
		}
	case p.binary != "":
		if p.version, err = BinaryVersion(ctx, p.binary); err != nil {
			return refuse("name another with --containerd, or its version with --containerd-version", "%w", err)
		}
	case file.Version >= 3:
		p.version = Version{Major: 2}
	case file.Version == 2:
		p.version = Version{Major: 1, Minor: 6}
	default:
		return refuse("name it with --containerd, or its version with --containerd-version",
			"%s: there is no containerd %q, and no version in the file", p.main.path, p.Options.Binary)
	}
	switch old := len(file.Disabled)+len(file.Required) > 0 || p.hasPlugins(); {
	case file.Version == 1, file.Version == 0 && old:
		return refuse(`make it version 2: plugins get their full names, as "io.containerd.grpc.v1.cri" for "cri"`,
			"%s: version 1 of containerd's configuration cannot be edited", p.main.path)
	case file.Version > 2 && p.version.Major < 2:
		return refuse("name the containerd that reads it with --containerd, or its version with --containerd-version",
			"%s: containerd %d.%d does not read version %d", p.main.path, p.version.Major, p.version.Minor, file.Version)
	}
	return nil
}

// hasPlugins reports whether the file has settings of plugins, whose names depend on the version.
func (p *plan) hasPlugins() bool {
	d := &document{p.main.pristine}
	for _, e := range d.entries() {
		if e.path[0] == "plugins" {
			return true
		}
	}
	return false
}

// findDropIn chooses the file for the settings. containerd 2.x merges an imported file key by key, so a directory of them is
// the best place. 1.x replaces all settings of a plugin by those of the imported file, so there it is not.
func (p *plan) findDropIn(file *ContainerdConfig) (err error) {
	if p.version.Major < 2 {
		return nil
	}
	for _, pattern := range file.Imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(p.main.path), pattern)
		}
		if path := filepath.Join(filepath.Dir(pattern), "xylem.toml"); strings.Contains(pattern, "*") && within(pattern, path) {
			p.dropIn, err = p.look(path)
			return err
		}
	}
	return nil
}

// apply makes what is wanted of a file. Unless other options were given the last time, it starts with the text as it is, so that
// nothing moves that is right already; otherwise with the text without xylem's lines.
func (p *plan) apply(s *state, edit func(text []byte) ([]byte, error)) (err error) {
	base := s.pristine
	if f := p.record.find(s.path); f != nil && s.current != nil {
		if again, err := edit(f.Original); err == nil && bytes.Equal(again, f.Written) {
			base = s.current
		}
	}
	s.wanted, err = edit(base)
	return err
}

// edit makes the text of the target from what it is.
func (p *plan) edit(before *ContainerdConfig) func(text []byte) ([]byte, error) {
	return func(text []byte) ([]byte, error) {
		c, err := parseConfig(text)
		if err != nil {
			return nil, err
		}
		version := c.Version
		switch {
		case version > 0:
		case p.target() == p.dropIn:
			version = 3
		default:
			version = min(p.version.Major+1, 3)
		}
		d := &document{text}
		for _, step := range []func(*document, int, *ContainerdConfig) error{setVersion, p.setPlugin, p.setPods, p.setConfigPath, p.setTransfer} {
			if err := step(d, version, before); err != nil {
				return nil, err
			}
		}
		if _, err := newDocument(d.text); err != nil {
			return nil, fmt.Errorf("xylem cannot edit it (%w)", err)
		}
		return d.text, nil
	}
}

func setVersion(d *document, version int, _ *ContainerdConfig) error {
	return d.set(strconv.Itoa(version), "version")
}

// setPlugin makes the snapshotter known.
func (p *plan) setPlugin(d *document, _ int, _ *ContainerdConfig) error {
	table := []string{"proxy_plugins", Snapshotter}
	err := errors.Join(d.set(`"snapshot"`, append(table, "type")...), d.set(strconv.Quote(p.Socket), append(table, "address")...))
	if p.version.Major >= 2 {
		err = errors.Join(err, d.set(`"true"`, append(table, "exports", exportOf)...))
	}
	return err
}

// podTables returns the tables that settings for pods go to: that of the version, with the table below it that version 2 has.
// containerd 2.x loses the snapshotter of version 2 where no runtimes are configured, so it gets its own table there, too.
func (p *plan) podTables(version int, below2, below3 string) [][]string {
	table2, table3 := []string{"plugins", cri1, below2}, []string{"plugins", images}
	if below3 != "" {
		table3 = append(table3, below3)
	}
	switch {
	case version >= 3:
		return [][]string{table3}
	case p.version.Major >= 2:
		return [][]string{table2, table3}
	}
	return [][]string{table2}
}

// setPods lets pods use it.
func (p *plan) setPods(d *document, version int, _ *ContainerdConfig) error {
	if !p.Pods {
		return nil
	}
	for _, table := range p.podTables(version, "containerd", "") {
		err := errors.Join(d.set(strconv.Quote(Snapshotter), append(table, "snapshotter")...), d.set("false", append(table, "disable_snapshot_annotations")...))
		if err != nil {
			return err
		}
	}
	return nil
}

// setConfigPath names the directory of hosts.toml files: one, because the transfer service takes a list for the name of one.
func (p *plan) setConfigPath(d *document, version int, before *ContainerdConfig) error {
	if p.Proxy == "" || before.Registry().ConfigPath == p.CertsDir {
		return nil
	}
	for _, table := range p.podTables(version, "registry", "registry") {
		if err := d.set(strconv.Quote(p.CertsDir), append(table, "config_path")...); err != nil {
			return err
		}
	}
	return nil
}

// setTransfer does the same for ctr 2.x. A list of unpackers that is there belongs to the user.
func (p *plan) setTransfer(d *document, _ int, _ *ContainerdConfig) error {
	if p.version.Major < 2 {
		return nil
	}
	if p.Proxy != "" {
		if err := d.set(strconv.Quote(p.CertsDir), "plugins", transfer, "config_path"); err != nil {
			return err
		}
	}
	for _, text := range [][]byte{p.main.pristine, d.text} {
		if c, err := parseConfig(text); err != nil || len(c.Plugins.Transfer.Unpack) > 0 {
			if err == nil && !slices.Contains(c.Plugins.Transfer.Unpack, unpacker{Snapshotter}) {
				p.note("ctr does not use the snapshotter, because unpack_config of %s is without it", transfer)
			}
			return err
		}
	}
	for _, snapshotter := range []string{Snapshotter, "overlayfs"} {
		d.add(fmt.Sprintf("[[%s]]\n  platform = \"linux\"\n  snapshotter = %q\n  differ = \"walking\"\n",
			dotted([]string{"plugins", transfer, "unpack_config"}), snapshotter))
	}
	return nil
}

// missing says what is not in effect.
func (p *plan) missing(c *ContainerdConfig) string {
	cri, table := c.CRI()
	plugin := c.ProxyPlugins[Snapshotter]
	switch {
	case plugin.Type != "snapshot" || plugin.Address != p.Socket:
		return "proxy_plugins.xylem"
	case table == "": // without a binary to ask and in a drop-in file only
	case p.Pods && cri.Snapshotter != Snapshotter:
		return table + ".snapshotter"
	case p.Pods && cri.DisableAnnotations:
		return table + ".disable_snapshot_annotations"
	case p.Proxy != "" && c.Registry().ConfigPath != p.CertsDir:
		return "config_path of " + table
	}
	return ""
}
