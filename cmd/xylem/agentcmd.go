package main

import (
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
)

func newAgent(a *app) *cobra.Command {
	defaults := agent.Default()
	overrides := defaults
	printConfig := false
	cmd := &cobra.Command{
		Use: "agent", Short: "Run the node's daemon: cache, mounts, snapshotter", Args: usage(cobra.NoArgs),
		Long: "Agent runs in the foreground until SIGTERM or SIGINT. containerd's proxy_plugins point at agent.sock in the --state directory.\n" +
			"Flags override the configuration file; docs/operations.md explains every key.",
	}
	flags := cmd.Flags()
	flags.StringVar(&overrides.Admin, "admin", defaults.Admin, "TCP `address` of /metrics, /livez, /readyz and /debug; empty for none")
	flags.StringVar(&overrides.Proxy.Listen, "proxy", defaults.Proxy.Listen, "TCP `address` of the registry proxy, on loopback; empty for none")
	flags.TextVar(&overrides.CacheBudget, "cache-budget", defaults.CacheBudget, "disk `space` for blocks and decompressed data")
	flags.StringVar(&overrides.MountWay, "mount-way", defaults.MountWay, "how to mount: auto, file, loop or tree")
	flags.StringArrayVar(&overrides.Schedulers, "scheduler", nil, "`URL` of a scheduler of the cluster, as https://10.0.0.1:9760; may be repeated")
	flags.StringVar(&overrides.JoinTokenFile, "join-token-file", "", "`file` with the token that lets the agent join the cluster")
	flags.TextVar(&overrides.Listen, "listen", defaults.Listen, "TCP `address` at which other agents get blocks")
	flags.StringVar(&overrides.Zone, "zone", "", "`zone` of the machine: agents feed each other inside a zone where they can")
	flags.BoolVar(&printConfig, "print-config", false, "print the configuration that is in effect and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config := a.config
		for name, override := range map[string]func(){
			"admin":           func() { config.Admin = overrides.Admin },
			"proxy":           func() { config.Proxy.Listen = overrides.Proxy.Listen },
			"cache-budget":    func() { config.CacheBudget = overrides.CacheBudget },
			"mount-way":       func() { config.MountWay = overrides.MountWay },
			"scheduler":       func() { config.Schedulers = overrides.Schedulers },
			"join-token-file": func() { config.JoinTokenFile = overrides.JoinTokenFile },
			"listen":          func() { config.Listen = overrides.Listen },
			"zone":            func() { config.Zone = overrides.Zone },
		} {
			if flags.Changed(name) {
				override()
			}
		}
		if printConfig {
			return toml.NewEncoder(a.out).Encode(config)
		}
		return advise(agent.Run(cmd.Context(), config), "'xylem doctor' says what this node lacks")
	}
	return cmd
}
