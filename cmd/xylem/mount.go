package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
)

// client returns a client of the agent on this machine.
func (a *app) client() *agent.Client { return agent.NewClient(a.config.AdminSocket()) }

func newMount(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "mount REF DIR", Short: "Mount an image read-only at a directory, lazily", Args: usage(cobra.ExactArgs(2)),
		Long: "Mount has the agent mount the block image of REF at DIR, without containerd. DIR must exist; its content is hidden until\n" +
			"`xylem unmount DIR`. The mount ends with the agent.",
	}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := existingDir(args[1])
		if err != nil {
			return err
		}
		mounted, err := a.client().Mount(cmd.Context(), args[0], dir)
		if err != nil {
			return advise(fmt.Errorf("%s at %s: %w", args[0], dir, err), "if the image has no block image yet, 'xylem convert %s --push'", args[0])
		}
		return output.print(a.out, mounted, func(w io.Writer) { fmt.Fprintf(w, "mounted %s at %s\n", args[0], mounted.Dir) })
	}
	return cmd
}

func existingDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", advise(err, "make the directory first")
	}
	if !info.IsDir() {
		return "", usageError{fmt.Errorf("%s is not a directory", dir)}
	}
	return dir, nil
}

func newUnmount(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "unmount DIR", Short: "Undo mount", Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return a.client().Unmount(cmd.Context(), dir)
		},
	}
}
