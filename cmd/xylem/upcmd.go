package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/cmd/xylem/up"
	"github.com/xylem-project/xylem/scheduler"
)

func newUp(a *app) *cobra.Command {
	cfg := up.Config{Scheduler: scheduler.Default(), Registry: "127.0.0.1:5000", Peers: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9752)}
	var proxy, admin string
	cmd := &cobra.Command{
		Use: "up", Short: "Run everything on this machine: registry, containerd, scheduler and agent", Args: usage(cobra.NoArgs),
		Long: "Up runs in the foreground until SIGTERM or SIGINT. Registry and containerd are the machine's programs, run with directories of\n" +
			"their own below --root and --state: nothing of the machine is changed. Then 'xylem fn create' makes functions of images.",
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Registry, "registry", cfg.Registry, "TCP `address` of the registry, which needs no login; empty for none")
	flags.StringVar(&cfg.Scheduler.Listen, "listen", cfg.Scheduler.Listen, "TCP `address` of the scheduler's API")
	flags.StringVar(&cfg.Scheduler.Admin, "scheduler-admin", cfg.Scheduler.Admin, "TCP `address` of the scheduler's /metrics; empty for none")
	flags.TextVar(&cfg.Peers, "peers", cfg.Peers, "TCP `address` for blocks to other agents")
	flags.StringVar(&proxy, "proxy", "", "TCP `address` of the registry proxy (default as configured)")
	flags.StringVar(&admin, "admin", "", "TCP `address` of the agent's /metrics (default as configured)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Agent = a.config
		if flags.Changed("proxy") {
			cfg.Agent.Proxy.Listen = proxy
		}
		if flags.Changed("admin") {
			cfg.Agent.Admin = admin
		}
		cfg.Ready = func() {
			fmt.Fprintf(a.out, "ready: push images to %s, then xylem fn create NAME --image %s/...\n", cfg.Registry, cfg.Registry)
		}
		collectLess()
		return advise(up.Run(cmd.Context(), cfg), "'xylem doctor' says what this machine lacks")
	}
	return cmd
}
