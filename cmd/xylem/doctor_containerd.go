package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/cmd/xylem/setup"
)

func (d *doctor) checkContainerdConfig(ctx context.Context) []finding {
	path, err := exec.LookPath(d.containerd)
	if err != nil {
		return []finding{fail("containerd", "install containerd 1.6 or later, or name it with --containerd", "%v", err)}
	}
	c, err := setup.Dump(ctx, d.containerd, d.containerdConfig) // with its defaults and imports
	if err != nil {
		return []finding{fail("containerd", "correct "+d.containerdConfig, "%v", err)}
	}
	findings := []finding{ok("containerd", "%s, configuration version %d", path, c.Version)}
	findings = append(findings, d.checkProxyPlugin(c), d.checkCRI(c))
	version, err := setup.BinaryVersion(ctx, d.containerd)
	if err != nil {
		return append(findings, fail("containerd", "name another with --containerd", "%v", err))
	}
	return append(findings, d.checkHosts(c, version))
}

func (d *doctor) checkProxyPlugin(c *setup.ContainerdConfig) finding {
	const check = "proxy_plugins"
	want := fmt.Sprintf("run 'xylem setup containerd', or put [proxy_plugins.xylem] type = \"snapshot\", address = %q into %s, and restart containerd",
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

// Snapshotters that containerd has itself.
var ownSnapshotters = []string{"overlayfs", "native", "erofs", "btrfs", "zfs", "devmapper", "blockfile", "aufs"}

func (d *doctor) checkCRI(c *setup.ContainerdConfig) finding {
	const check = "CRI"
	cri, table := c.CRI()
	_, known := c.ProxyPlugins[cri.Snapshotter]
	fix := fmt.Sprintf("run 'xylem setup containerd', or put [%s] snapshotter = \"xylem\" into %s", table, d.containerdConfig)
	switch {
	case table == "":
		return warn(check, "enable the CRI plugin in "+d.containerdConfig+" if pods shall run here", "containerd has no CRI plugin")
	case !known && cri.Snapshotter != setup.Snapshotter && !slices.Contains(ownSnapshotters, cri.Snapshotter):
		return fail(check, fix, "containerd does not know the snapshotter %q that pods are to use", cri.Snapshotter)
	case cri.Snapshotter != setup.Snapshotter:
		return warn(check, fix+" if pods shall use it", "pods use the snapshotter %s", cri.Snapshotter)
	case cri.DisableAnnotations:
		return fail(check, fmt.Sprintf("run 'xylem setup containerd', or put [%s] disable_snapshot_annotations = false into %s", table, d.containerdConfig),
			"containerd does not tell the snapshotter which image a layer belongs to: images of pods are unpacked instead of mounted")
	}
	return ok(check, "pods use the snapshotter xylem, with image annotations")
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
