package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/cmd/xylem/setup"
)

const defaultContainerdConfig = "/etc/containerd/config.toml"

// restartContainerd is the command that makes a changed configuration count.
const restartContainerd = "systemctl restart containerd"

// proxyURL is where containerd finds the agent's registry proxy, or "" if there is none.
func proxyURL(config agent.Config) string {
	if config.Proxy.Listen == "" {
		return ""
	}
	return "http://" + config.Proxy.Listen
}

func newSetup(a *app) *cobra.Command {
	return group("setup", "Make other programs on this node use xylem", newSetupContainerd(a))
}

// setupFlags are those of `xylem setup containerd`.
type setupFlags struct {
	options             setup.Options
	snapshotter, forced string
	registries          []string
	uninstall           bool
}

func (f *setupFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.options.ConfigFile, "containerd-config", defaultContainerdConfig, "configuration `file` of containerd; made if it does not exist")
	flags.StringVar(&f.options.CertsDir, "certs-dir", "", "`directory` with a hosts.toml per registry (default what containerd's configuration says, else "+setup.DefaultCertsDir+")")
	flags.StringVar(&f.options.Binary, "containerd", "containerd", "`binary` of containerd, which is asked whether it likes the configuration")
	flags.StringVar(&f.forced, "containerd-version", "", "`version` of containerd, as 1.7 or 2.2 (default what the binary says)")
	flags.StringVar(&f.snapshotter, "snapshotter", "on", "`on|off`: whether pods use the snapshotter; it is made known to containerd anyway")
	flags.StringArrayVar(&f.registries, "registry", nil, "pull only this registry, a `host[:port]`, through the proxy; repeatable (default all without settings of their own)")
	flags.BoolVar(&f.uninstall, "uninstall", false, "put back what was there before")
	flags.BoolVar(&f.options.DryRun, "dry-run", false, "print what would change, and change nothing")
}

// complete checks the flags and adds what the agent's configuration says.
func (f *setupFlags) complete(config agent.Config) error {
	o := &f.options
	o.Proxy, o.Socket, o.Pods = proxyURL(config), config.Socket(), f.snapshotter == "on"
	if f.snapshotter != "on" && f.snapshotter != "off" {
		return usageError{fmt.Errorf("--snapshotter %q: want on or off", f.snapshotter)}
	}
	for _, path := range []*string{&o.ConfigFile, &o.CertsDir} {
		if abs, err := filepath.Abs(*path); err == nil && *path != "" {
			*path = abs
		}
	}
	if f.forced != "" {
		var err error
		if o.Version, err = setup.ParseVersion(f.forced); err != nil {
			return usageError{fmt.Errorf("--containerd-version: %w", err)}
		}
	}
	if o.Proxy == "" && len(f.registries) > 0 {
		return usageError{errors.New("--registry: the agent's configuration says that there is no proxy")}
	}
	for _, host := range f.registries {
		registry, err := name.NewRegistry(host, name.StrictValidation)
		if err != nil || strings.Contains(host, "..") {
			return usageError{fmt.Errorf("--registry %q: want a host or host:port, as docker.io", host)}
		}
		plain := registry.Scheme() == "http" && config.Registries[host].CA == "" || config.Registries[host].PlainHTTP
		o.Registries = append(o.Registries, setup.Upstream{Host: host, PlainHTTP: plain})
	}
	return nil
}

func newSetupContainerd(a *app) *cobra.Command {
	var f setupFlags
	cmd := &cobra.Command{
		Use: "containerd", Short: "Make containerd use the snapshotter and the registry proxy, or undo that", Args: usage(cobra.NoArgs),
		Long: "Containerd puts the agent's registry proxy before the registries (hosts.toml), makes the snapshotter known to containerd and\n" +
			"lets pods use it. What it changes it can take back with --uninstall; the backup is in xylem-setup beside containerd's\n" +
			"configuration. Running it again is safe: what the options of the last run asked for, and those of this one do not, is taken back.\n" +
			"containerd is not restarted.",
	}
	f.add(cmd)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.complete(a.config); err != nil {
			return err
		}
		var result *setup.Result
		var err error
		if f.uninstall {
			result, err = setup.Uninstall(f.options)
		} else {
			result, err = setup.Install(cmd.Context(), f.options)
		}
		var refused *setup.Error
		if errors.As(err, &refused) {
			return advise(err, "%s", refused.Advice)
		}
		if err != nil {
			return err
		}
		return printSetup(a.out, output, result, f.uninstall)
	}
	return cmd
}

// setupResult is what the command prints.
type setupResult struct {
	*setup.Result
	Next string `json:"next,omitempty"` // command to run
}

var done = map[string]string{"create": "created", "edit": "edited", "restore": "restored", "remove": "removed"}

func printSetup(w io.Writer, output *format, result *setup.Result, uninstall bool) error {
	r := setupResult{Result: result}
	if len(result.Changes) > 0 {
		r.Next = restartContainerd
	}
	return output.print(w, r, func(w io.Writer) {
		for _, c := range result.Changes {
			if result.DryRun {
				fmt.Fprint(w, c.Diff)
			} else {
				fmt.Fprintf(w, "%s: %s\n", c.Path, done[c.Action])
			}
		}
		for _, note := range result.Notes {
			fmt.Fprintf(w, "note: %s\n", note)
		}
		switch {
		case len(result.Changes) == 0:
			fmt.Fprintln(w, "nothing to change")
		case result.DryRun:
			fmt.Fprintln(w, "nothing was changed (--dry-run)")
		default:
			if !uninstall {
				fmt.Fprintf(w, "backup: %s\n", result.Backup)
			}
			fmt.Fprintf(w, "now run: %s\n", restartContainerd)
		}
	})
}
