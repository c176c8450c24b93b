package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/scheduler/api"
)

func (f *fn) invoke() *cobra.Command {
	var o api.InvokeOptions
	var data, contentType string
	cmd := &cobra.Command{
		Use: "invoke NAME", Short: "Invoke a function and print its answer", Args: usage(cobra.ExactArgs(1)),
		Long: "Invoke sends the payload and prints the answer as it comes. Its exit code is 1 if the function failed, whose error is then\n" +
			"printed all the same.",
	}
	flags := cmd.Flags()
	flags.StringVarP(&data, "data", "d", "", "`payload`; @FILE: what is in a file, @-: stdin (default none)")
	flags.StringVar(&contentType, "content-type", "application/json", "`type` of the payload")
	flags.StringVar(&o.Qualifier, "qualifier", "", "`version` or alias (default the newest version)")
	flags.StringVar(&o.Colour, "color", "", "`color`: invocations with the same one go to the same instance if they can")
	flags.BoolVar(&o.Async, "async", false, "return as soon as the invocation is kept safe, and have it run later")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		payload, done, err := f.payload(data)
		if err != nil {
			return err
		}
		defer done() //nolint:errcheck // it was read
		u, err := f.user()
		if err != nil {
			return err
		}
		o.Header = http.Header{"Content-Type": {contentType}}
		answer, err := u.Invoke(cmd.Context(), args[0], payload, o)
		if err != nil {
			return f.adviseFunction(err)
		}
		defer answer.Body.Close()
		if _, err := io.Copy(f.out, answer.Body); err != nil {
			return fmt.Errorf("function %s: its answer broke off: %w", args[0], err)
		}
		return functionFailed(args[0], answer)
	}
	return cmd
}

// functionFailed returns an error if an answer says that the function failed.
func functionFailed(name string, answer *http.Response) error {
	switch how := answer.Header.Get(api.HeaderUserError); {
	case how != "":
		return advise(fmt.Errorf("function %s failed: %s", name, strings.ToLower(how)), "'xylem fn logs %s' shows what it printed", name)
	case answer.StatusCode >= 300:
		return advise(fmt.Errorf("function %s answered %s", name, answer.Status), "'xylem fn logs %s' shows what it printed", name)
	}
	return nil
}

// payload opens what --data names. The caller calls done.
func (f *fn) payload(data string) (payload io.Reader, done func() error, err error) {
	nothing := func() error { return nil }
	switch {
	case data == "@-":
		return f.in, nothing, nil
	case strings.HasPrefix(data, "@"):
		file, err := os.Open(data[1:])
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--data: %w", err)}
		}
		return file, file.Close, nil
	}
	return strings.NewReader(data), nothing, nil
}

func (f *fn) logs() *cobra.Command {
	var version, lines int
	var since time.Duration
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Print what a function's instances printed", Args: usage(cobra.ExactArgs(1)),
		Long: "Logs prints the newest lines of all instances, the oldest of them first. Nodes keep about a megabyte for each function.",
	}
	cmd.Flags().IntVar(&version, "version", 0, "`number` of the version (default all)")
	cmd.Flags().IntVar(&lines, "lines", 100, "`number` of lines")
	cmd.Flags().DurationVar(&since, "since", 0, "only what is no older than this `time`")
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if version < 0 || lines < 1 || since < 0 {
			return usageError{errors.New("--version and --since must not be negative, --lines must be positive")}
		}
		u, err := f.user()
		if err != nil {
			return err
		}
		list, err := u.Logs(cmd.Context(), args[0], version, lines)
		if err != nil {
			return f.adviseFunction(err)
		}
		shown := []api.LogLine{}
		for _, l := range list {
			if since == 0 || time.Since(l.Time) <= since {
				shown = append(shown, l)
			}
		}
		return output.print(f.out, shown, func(w io.Writer) { printLog(w, shown) })
	}
	return cmd
}

func printLog(w io.Writer, lines []api.LogLine) {
	for _, l := range lines {
		if l.Lost > 0 {
			fmt.Fprintf(w, "%s %s (%d lines were thrown away)\n", l.Time.Local().Format(time.DateTime), l.Instance, l.Lost)
		}
		fmt.Fprintf(w, "%s %s %s\n", l.Time.Local().Format(time.DateTime), l.Instance, l.Text)
	}
}

func (f *fn) instances() *cobra.Command {
	cmd := &cobra.Command{Use: "instances", Short: "List the instances of the namespace's functions", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		u, err := f.user()
		if err != nil {
			return err
		}
		list, err := u.Instances(cmd.Context())
		if err != nil {
			return f.adviseFunction(err)
		}
		return output.print(f.out, list, func(w io.Writer) {
			row(w, "FUNCTION", "VERSION", "INSTANCE", "NODE", "RUNNING")
			for _, i := range list {
				row(w, i.Function, i.Version, i.ID, i.Node, i.InFlight)
			}
		})
	}
	return cmd
}
