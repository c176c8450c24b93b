package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/pelletier/go-toml/v2"

	"github.com/xylem-project/xylem/agent"
)

// containerdConfig is what the doctor wants to know of containerd's configuration, in both of its versions.
type containerdConfig struct {
	Version      int `toml:"version"`
	ProxyPlugins map[string]struct {
		Type    string            `toml:"type"`
		Address string            `toml:"address"`
		Exports map[string]string `toml:"exports"`
	} `toml:"proxy_plugins"`
	Plugins struct {
		CRI1 struct { // containerd 1.x
			Containerd criConfig `toml:"containerd"`
		} `toml:"io.containerd.grpc.v1.cri"`
		CRI2 *criConfig `toml:"io.containerd.cri.v1.images"` // containerd 2.x
	} `toml:"plugins"`
}

type criConfig struct {
	Snapshotter        string `toml:"snapshotter"`
	DisableAnnotations bool   `toml:"disable_snapshot_annotations"`
}

func (c *containerdConfig) cri() (criConfig, string) {
	if c.Plugins.CRI2 != nil {
		return *c.Plugins.CRI2, "plugins.'io.containerd.cri.v1.images'"
	}
	return c.Plugins.CRI1.Containerd, `plugins."io.containerd.grpc.v1.cri".containerd`
}

// effectiveConfig asks containerd itself, which knows its defaults and imports.
func (d *doctor) effectiveConfig(ctx context.Context) (*containerdConfig, error) {
	args := []string{"config", "dump"}
	if _, err := os.Stat(d.containerdConfig); err == nil {
		args = append([]string{"--config", d.containerdConfig}, args...)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, d.containerd, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	var c containerdConfig
	if err := toml.Unmarshal(out, &c); err != nil {
		return nil, fmt.Errorf("configuration of containerd: %w", err)
	}
	return &c, nil
}

func (d *doctor) checkContainerdConfig(ctx context.Context) []finding {
	path, err := exec.LookPath(d.containerd)
	if err != nil {
		return []finding{fail("containerd", "install containerd 1.6 or later, or name it with --containerd", "%v", err)}
	}
	c, err := d.effectiveConfig(ctx)
	if err != nil {
		return []finding{fail("containerd", "correct "+d.containerdConfig, "%v", err)}
	}
	findings := []finding{ok("containerd", "%s, configuration version %d", path, c.Version)}
	findings = append(findings, d.checkProxyPlugin(c))
	return append(findings, d.checkCRI(c)...)
}

func (d *doctor) checkProxyPlugin(c *containerdConfig) finding {
	const check = "proxy_plugins"
	want := fmt.Sprintf("put [proxy_plugins.xylem] type = \"snapshot\", address = %q into %s and restart containerd",
		d.config.Socket(), d.containerdConfig)
	p, known := c.ProxyPlugins["xylem"]
	switch {
	case !known:
		return fail(check, want, "containerd does not know the snapshotter xylem")
	case p.Type != "snapshot" || p.Address != d.config.Socket():
		return fail(check, want, "proxy_plugins.xylem is a %s at %q", p.Type, p.Address)
	case c.Version >= 3 && p.Exports["enable_remote_snapshot_annotations"] != "true":
		return warn(check, "put [proxy_plugins.xylem.exports] enable_remote_snapshot_annotations = \"true\" into "+d.containerdConfig,
			"images pulled by containerd's transfer service are unpacked instead of mounted")
	}
	return ok(check, "snapshotter xylem at %s", p.Address)
}

func (d *doctor) checkCRI(c *containerdConfig) []finding {
	cri, table := c.cri()
	switch {
	case cri.Snapshotter != "xylem":
		return []finding{warn("CRI", fmt.Sprintf("put [%s] snapshotter = \"xylem\" into %s if pods shall use it", table, d.containerdConfig),
			"pods use the snapshotter %s", cri.Snapshotter)}
	case cri.DisableAnnotations:
		return []finding{fail("CRI", fmt.Sprintf("put [%s] disable_snapshot_annotations = false into %s", table, d.containerdConfig),
			"containerd does not tell the snapshotter which image a layer belongs to: images of pods are unpacked instead of mounted")}
	}
	return []finding{ok("CRI", "pods use the snapshotter xylem, with image annotations")}
}

// checkContainerd looks at the running daemon.
func (d *doctor) checkContainerd(ctx context.Context) []finding {
	const check = "containerd.sock"
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	flags := containerdFlags{address: d.address, namespace: "default"}
	client, ctx, err := flags.connect(ctx, d.config.Log)
	if err != nil {
		return []finding{fail(check, "start containerd or name its socket with --address", "%v", err)}
	}
	defer client.Close()
	version, err := client.Version(ctx)
	if err != nil {
		return []finding{fail(check, "restart containerd", "%v", err)}
	}
	return []finding{ok(check, "containerd %s answers", version.Version), checkPlugin(ctx, client)}
}

func checkPlugin(ctx context.Context, client *containerd.Client) finding {
	const check, restart = "snapshotter", "restart containerd after changing its configuration"
	plugins, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id==xylem")
	switch {
	case err != nil:
		return fail(check, restart, "%v", err)
	case len(plugins.Plugins) == 0:
		return fail(check, restart, "the running containerd does not know the snapshotter xylem")
	case plugins.Plugins[0].InitErr != nil:
		return fail(check, restart, "containerd could not load it: %s", plugins.Plugins[0].InitErr.Message)
	}
	return ok(check, "the running containerd knows the snapshotter xylem")
}

// checkTrust says whose block images are used.
func (d *doctor) checkTrust(context.Context) []finding {
	if len(d.config.TrustedKeys) == 0 {
		return []finding{warn("trust", "list the public keys of your converters in trusted_keys ("+agentConfigFile+")",
			"block images of this node's own converter are used, no others")}
	}
	keys, err := agent.ReadPublicKeys(d.config.TrustedKeys)
	if err != nil {
		return []finding{fail("trust", "correct trusted_keys", "%v", err)}
	}
	return []finding{ok("trust", "block images of %d converters are used, besides this node's own", len(keys))}
}

// checkAgent asks the agent's sockets.
func (d *doctor) checkAgent(ctx context.Context) []finding {
	const check, start = "agent", "start 'xylem agent', or see its log"
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var dialer net.Dialer
	for _, socket := range []string{d.config.AdminSocket(), d.config.Socket()} {
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err != nil {
			return []finding{fail(check, start, "nobody answers: %v", err)}
		}
		conn.Close()
	}
	images, err := agent.NewClient(d.config.AdminSocket()).Images(ctx)
	if err != nil {
		return []finding{fail(check, start, "%v", err)}
	}
	return []finding{ok(check, "answers at %s, with %d images", d.config.Socket(), len(images))}
}
