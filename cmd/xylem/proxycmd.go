package main

import (
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
)

func newProxy(a *app) *cobra.Command {
	defaults := agent.Default()
	overrides := defaults
	cmd := &cobra.Command{
		Use: "proxy", Short: "Run the registry proxy alone, without mounts and snapshotter", Args: usage(cobra.NoArgs),
		Long: "Proxy is a pull-through mirror for every client on this machine, in the foreground until SIGTERM or SIGINT. An agent has it built in:\n" +
			"run this where no agent runs. It reads the agent's configuration file, of which the section [proxy] and the registries matter.",
	}
	flags := cmd.Flags()
	flags.StringVar(&overrides.Proxy.Listen, "listen", defaults.Proxy.Listen, "TCP `address` of the proxy, on loopback")
	flags.StringVar(&overrides.Proxy.DefaultUpstream, "default-upstream", defaults.Proxy.DefaultUpstream, "`registry` of requests that name none")
	flags.StringVar(&overrides.Admin, "admin", defaults.Admin, "TCP `address` of /metrics, /livez, /readyz and /debug; empty for none")
	flags.TextVar(&overrides.CacheBudget, "cache-budget", defaults.CacheBudget, "disk `space` for what is kept")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config := a.config
		for name, override := range map[string]func(){
			"listen":           func() { config.Proxy.Listen = overrides.Proxy.Listen },
			"default-upstream": func() { config.Proxy.DefaultUpstream = overrides.Proxy.DefaultUpstream },
			"admin":            func() { config.Admin = overrides.Admin },
			"cache-budget":     func() { config.CacheBudget = overrides.CacheBudget },
		} {
			if flags.Changed(name) {
				override()
			}
		}
		return agent.RunProxy(cmd.Context(), config)
	}
	return cmd
}
