// Command xylem is the project's one binary: converter, node agent and the operator's tools. It turns flags and a
// configuration file into the Config of the package that does the work, runs it and exits.
//
// Exit codes: 0, 1 for a failure, 2 for wrong usage; `xylem run` passes on the exit code of the container's process. Errors
// are one line on stderr: what failed, on what, what to do.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Set by the linker; see the Makefile.
var (
	version = "unknown"
	commit  = "unknown"
)

// stdio is what a command reads and prints to.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, a second one kills.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, std stdio, args []string) int {
	root := newRoot(std)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if line := errorLine(cmd.CommandPath(), err); line != "" {
		fmt.Fprintln(std.err, line)
	}
	return exitCode(err)
}
