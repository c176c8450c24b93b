package main

import (
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/blockfmt"
)

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version of xylem and of the formats it writes", Args: usage(cobra.NoArgs),
	}
	output := addOutput(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := struct {
			Version  string `json:"version"`
			Commit   string `json:"commit"`
			Go       string `json:"go"`
			Platform string `json:"platform"`
			Spec     string `json:"erofsImageSpec"` // revision of the draft specification
		}{version, commit, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, blockfmt.SpecRevision}
		return output.print(a.out, v, func(w io.Writer) {
			row(w, "xylem", v.Version)
			row(w, "commit", v.Commit)
			row(w, "go", v.Go, v.Platform)
			row(w, "erofs-image-spec", v.Spec)
		})
	}
	return cmd
}
