package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
)

// format is the value of --output.
type format string

const (
	formatText format = "text"
	formatJSON format = "json"
)

// String, Set and Type make it a flag's value.
func (f *format) String() string { return string(*f) }

func (f *format) Set(value string) error {
	if format(value) != formatText && format(value) != formatJSON {
		return fmt.Errorf("want text or json")
	}
	*f = format(value)
	return nil
}

func (f *format) Type() string { return "format" }

// addOutput gives a command the flag --output and returns where its value will be.
func addOutput(cmd *cobra.Command) *format {
	f := formatText
	cmd.Flags().VarP(&f, "output", "o", "text or json")
	return &f
}

// print writes v as indented JSON, or as the text that write makes.
func (f *format) print(w io.Writer, v any, write func(w io.Writer)) error {
	if *f == formatJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	write(tw)
	return tw.Flush()
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = fmt.Sprint(c)
	}
	fmt.Fprintln(w, strings.Join(texts, "\t"))
}

// bytesText says a size for people, with up to four digits.
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1<<10 && unit < 5 {
		value /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.4g %ciB", value, " KMGTP"[unit])
}

// shortDigest is enough of a digest for people to tell one from another.
func shortDigest(d digest.Digest) string {
	if d.Validate() != nil {
		return d.String()
	}
	return d.Encoded()[:12]
}
