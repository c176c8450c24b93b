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
	flags.TextVar(&overrides.CacheBudget, "cache-budget", defaults.CacheBudget, "disk `space` for blocks and decompressed data")
	flags.StringVar(&overrides.MountWay, "mount-way", defaults.MountWay, "how to mount: auto, file, loop or tree")
	flags.BoolVar(&printConfig, "print-config", false, "print the configuration that is in effect and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config := a.config
		if flags.Changed("admin") {
			config.Admin = overrides.Admin
		}
		if flags.Changed("cache-budget") {
			config.CacheBudget = overrides.CacheBudget
		}
		if flags.Changed("mount-way") {
			config.MountWay = overrides.MountWay
		}
		if printConfig {
			return toml.NewEncoder(a.out).Encode(config)
		}
		return advise(agent.Run(cmd.Context(), config), "'xylem doctor' says what this node lacks")
	}
	return cmd
}
