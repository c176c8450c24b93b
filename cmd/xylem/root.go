package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
)

// app is what all commands share. Filled from the persistent flags before a command runs.
type app struct {
	stdio
	configFile string
	root       string
	state      string
	logLevel   slog.Level
	config     agent.Config // file and flags together, with log
	log        *slog.Logger // to stderr
}

func newRoot(std stdio) *cobra.Command {
	a := &app{stdio: std}
	defaults := agent.Default()
	root := &cobra.Command{
		Use:           "xylem",
		Short:         "Containers that start before their image is there",
		Long:          "xylem converts OCI images into block images and mounts them lazily, block by block, for containerd.",
		SilenceErrors: true, SilenceUsage: true,
		Args:              usage(cobra.NoArgs),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.load(cmd) },
	}
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "configuration `file` of the agent (default "+agentConfigFile+" if it exists)")
	flags.StringVar(&a.root, "root", defaults.Root, "`directory` of what survives a reboot: cache, images, keys")
	flags.StringVar(&a.state, "state", defaults.State, "`directory` of sockets and mounts")
	flags.TextVar(&a.logLevel, "log-level", slog.LevelInfo, "least `level` of log lines: debug, info, warn or error")
	root.AddCommand(
		newConvert(a), newInspect(a), newMount(a), newUnmount(a), newPull(a), newRun(a), newAgent(a), newProxy(a), newScheduler(a), newDoctor(a), newCache(a),
		newImages(a), newTree(a), newRecord(a), newKey(a), newSetup(a), newFn(a), newUp(a), newVersion(a),
	)
	return root
}

// load reads the configuration and lets the flags override it.
func (a *app) load(cmd *cobra.Command) error {
	a.log = newLogger(a.err, a.logLevel)
	config, err := loadConfig(a.configFile, agentConfigFile, agent.Default())
	if err != nil {
		return advise(err, "docs/operations.md lists every key")
	}
	if cmd.Flags().Changed("root") {
		config.Root = a.root
	}
	if cmd.Flags().Changed("state") {
		config.State = a.state
	}
	config.Log = a.log
	a.config = config
	return nil
}

// group is a command that only has subcommands.
func group(use, short string, subcommands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("it needs one of its subcommands")}
		},
	}
	cmd.AddCommand(subcommands...)
	return cmd
}
