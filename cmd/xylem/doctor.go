package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
)

// status of a finding.
type status string

const (
	statusOK   status = "OK"
	statusWarn status = "WARN" // works, but slower or not for everybody
	statusFail status = "FAIL" // does not work
)

// finding is one line of the doctor.
type finding struct {
	Status status `json:"status"`
	Check  string `json:"check"`
	What   string `json:"what"`
	Fix    string `json:"fix,omitempty"` // what to change
}

func ok(check, what string, args ...any) finding {
	return finding{Status: statusOK, Check: check, What: fmt.Sprintf(what, args...)}
}

func warn(check, fix, what string, args ...any) finding {
	return finding{Status: statusWarn, Check: check, What: oneLine(fmt.Sprintf(what, args...)), Fix: fix}
}

func fail(check, fix, what string, args ...any) finding {
	return finding{Status: statusFail, Check: check, What: oneLine(fmt.Sprintf(what, args...)), Fix: fix}
}

// doctor is what the checks look at.
type doctor struct {
	config           agent.Config
	address          string // containerd's socket
	containerd       string // its binary
	containerdConfig string
	sys              string // "" for the real system; tests put a directory with proc/ and dev/ in its place
}

func newDoctor(a *app) *cobra.Command {
	var d doctor
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is missing on this node, and what to change", Args: usage(cobra.NoArgs),
		Long: "Doctor checks the kernel, FUSE, the ways to mount, containerd's configuration, credential plugins, the agent and its\n" +
			"cluster. Each finding is one line: " +
			"OK, WARN (works, but slower or not for everybody) or FAIL. It exits with 1 if anything is FAIL.",
	}
	cmd.Flags().StringVar(&d.address, "address", defaultContainerd, "`socket` of containerd")
	cmd.Flags().StringVar(&d.containerd, "containerd", "containerd", "`binary` of containerd")
	cmd.Flags().StringVar(&d.containerdConfig, "containerd-config", defaultContainerdConfig, "configuration `file` of containerd")
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d.config = a.config
		findings := d.examine(cmd.Context())
		if err := output.print(a.out, findings, func(w io.Writer) { printFindings(w, findings) }); err != nil {
			return err
		}
		for _, f := range findings {
			if f.Status == statusFail {
				return silent{errors.New("something is FAIL")}
			}
		}
		return nil
	}
	return cmd
}

func printFindings(w io.Writer, findings []finding) {
	for _, f := range findings {
		text := f.What
		if f.Fix != "" {
			text += "; " + f.Fix
		}
		row(w, f.Status, f.Check, text)
	}
}

// examine runs all checks, in the order in which a user would repair what they find.
func (d *doctor) examine(ctx context.Context) []finding {
	checks := []func(context.Context) []finding{
		d.checkUser, d.checkKernel, d.checkFilesystems, d.checkDevices, d.checkMountWay, d.checkDisk,
		d.checkContainerdConfig, d.checkContainerd, d.checkAgent, d.checkTrust, d.checkPlugins, d.checkSchedulers, d.checkListen,
	}
	findings := []finding{}
	for _, check := range checks {
		findings = append(findings, check(ctx)...)
	}
	return findings
}
