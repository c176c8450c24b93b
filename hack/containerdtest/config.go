package containerdtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// configV2 is read by containerd 1.x. What the tests do not need is off: some plugins fail to load in small machines.
const configV2 = `version = 2
root = {{q .Root}}
state = {{q .State}}
disabled_plugins = [{{if not .CRI}}"io.containerd.grpc.v1.cri", {{end}}"io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = {{q .Address}}
[plugins."io.containerd.internal.v1.opt"]
  path = {{q .Opt}}
{{if .Snapshotter}}[proxy_plugins.xylem]
  type = "snapshot"
  address = {{q .Snapshotter}}
{{end}}{{if .CRI}}[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  restrict_oom_score_adj = true
{{if .PauseImage}}  sandbox_image = {{q .PauseImage}}
{{end}}  [plugins."io.containerd.grpc.v1.cri".containerd]
{{if .Snapshotter}}    snapshotter = "xylem"
{{end}}    disable_snapshot_annotations = false
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {{q .Hosts}}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = {{q .CNI}}
{{end}}`

// configV3 is read by containerd 2.x.
const configV3 = `version = 3
root = {{q .Root}}
state = {{q .State}}
disabled_plugins = [{{if not .CRI}}"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", {{end}}"io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
  address = {{q .Address}}
[plugins."io.containerd.internal.v1.opt"]
  path = {{q .Opt}}
[plugins."io.containerd.transfer.v1.local"]
  config_path = {{q .Hosts}}
{{if .Snapshotter}}  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "xylem"
    differ = "walking"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
[proxy_plugins.xylem]
  type = "snapshot"
  address = {{q .Snapshotter}}
  [proxy_plugins.xylem.exports]
    enable_remote_snapshot_annotations = "true"
{{end}}{{if .CRI}}[plugins."io.containerd.cri.v1.images"]
{{if .Snapshotter}}  snapshotter = "xylem"
{{end}}  disable_snapshot_annotations = false
{{if .PauseImage}}  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {{q .PauseImage}}
{{end}}  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {{q .Hosts}}
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = {{q .CNI}}
{{end}}`

func (d *Daemon) configPath() string { return filepath.Join(d.Dir, "config.toml") }

// writeConfig makes the daemon's directories, its configuration and one hosts.toml for each registry.
func (d *Daemon) writeConfig() error {
	values := map[string]any{
		"Root": d.path("root"), "State": d.path("state"), "Opt": d.path("opt"), "CNI": d.path("cni"), "Hosts": d.HostsDir(),
		"Address": d.Address, "Snapshotter": d.opts.Snapshotter, "CRI": d.opts.CRI, "PauseImage": d.opts.PauseImage,
	}
	for _, dir := range []string{"root", "state", "opt", "cni", "certs.d"} {
		if err := os.MkdirAll(d.path(dir), 0o711); err != nil {
			return err
		}
	}
	for _, host := range d.opts.Registries {
		if err := d.writeHosts(host); err != nil {
			return err
		}
	}
	if d.opts.Mirror != "" {
		if err := d.writeHostsFile("_default", fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", d.opts.Mirror)); err != nil {
			return err
		}
	}
	text := configV3
	if d.Major < 2 {
		text = configV2
	}
	var out strings.Builder
	t := template.Must(template.New("config").Funcs(template.FuncMap{"q": func(s string) string { return fmt.Sprintf("%q", s) }}).Parse(text))
	if err := t.Execute(&out, values); err != nil {
		return err
	}
	return os.WriteFile(d.configPath(), []byte(out.String()), 0o600)
}

// writeHosts makes the registry at host reachable by plain HTTP.
func (d *Daemon) writeHosts(host string) error {
	return d.writeHostsFile(host, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n", host, host))
}

func (d *Daemon) writeHostsFile(name, text string) error {
	dir := filepath.Join(d.HostsDir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644)
}

func (d *Daemon) path(name string) string { return filepath.Join(d.Dir, name) }
