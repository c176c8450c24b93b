package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// processExit is the exit code of a container's process, which `xylem run` passes on without a word of its own.
type processExit int

func (e processExit) Error() string {
	return fmt.Sprintf("the container's process exited with %d", int(e))
}

// silent is a failure that a command has printed itself.
type silent struct{ error }

func (e silent) Unwrap() error { return e.error }

// advised is an error together with what the user can do about it.
type advised struct {
	error
	advice string
}

func (e advised) Unwrap() error { return e.error }

// advise says what to do about err, unless something deeper has said it already. A nil err stays nil.
func advise(err error, format string, args ...any) error {
	var a advised
	if err == nil || errors.As(err, &a) {
		return err
	}
	return advised{err, fmt.Sprintf(format, args...)}
}

func exitCode(err error) int {
	var exit processExit
	var usage usageError
	switch {
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitFailure
}

// errorLine returns the one line that stderr gets, or nothing.
func errorLine(command string, err error) string {
	var exit processExit
	var quiet silent
	if errors.As(err, &exit) || errors.As(err, &quiet) {
		return ""
	}
	text := oneLine(err.Error())
	if advice := adviceFor(command, err); advice != "" {
		text += "; " + advice
	}
	return command + ": " + text
}

// oneLine joins lines, so that errors of other programs and joined errors stay on one.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), ", ")
}

// adviceFor says what to do: what the command knows, or what the kind of the error tells.
func adviceFor(command string, err error) string {
	var a advised
	var usage usageError
	var plugin *registry.PluginError
	switch {
	case errors.As(err, &a):
		return a.advice
	case errors.As(err, &plugin):
		return fmt.Sprintf("see what credential provider plugin %s needs, 'xylem doctor' looks at its settings", plugin.Plugin)
	case errors.As(err, &usage):
		return fmt.Sprintf("see '%s --help'", command)
	case errors.Is(err, context.Canceled):
		return "it was interrupted, run it again"
	case errors.Is(err, syscall.ENOSPC):
		return "free disk space and run it again"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EPERM):
		return "run it as root"
	case errors.Is(err, blockfmt.ErrDenied):
		return "log in to the registry (docker login or skopeo login), or trust the converter's key"
	case errors.Is(err, blockfmt.ErrNotFound):
		return "check the name and that the image was pushed"
	case errors.Is(err, blockfmt.ErrCorrupt):
		return "the data is damaged: push or convert the image again"
	case errors.Is(err, blockfmt.ErrUnsupported):
		return "this version cannot read it"
	case errors.Is(err, blockfmt.ErrTransient), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ECONNREFUSED):
		return "check that the registry is reachable and try again"
	}
	return ""
}

// usage makes the errors of cobra's argument checks usage errors.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
