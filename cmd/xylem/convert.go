package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

// convertFlags are the flags of `xylem convert`.
type convertFlags struct {
	push                                       bool
	to, tag, out, profile, platform, key, keep string
	unsigned                                   bool
}

// converted is what `xylem convert` prints.
type converted struct {
	Image    string        `json:"image"`  // digest of the block image's manifest
	Source   string        `json:"source"` // digest of the source's
	Platform string        `json:"platform"`
	Pushed   string        `json:"pushed,omitempty"` // repository
	Out      string        `json:"out,omitempty"`    // directory
	Stats    convert.Stats `json:"stats"`
}

func newConvert(a *app) *cobra.Command {
	var flags convertFlags
	cmd := &cobra.Command{
		Use: "convert SRC", Short: "Convert an OCI image into a block image", Args: usage(cobra.ExactArgs(1)),
		Long: "Convert makes the block image of SRC, a registry reference or oci:DIR:TAG. With --push it goes into the source's repository,\n" +
			"where the agents find it as a referrer of the source; with --out it goes into an OCI image layout. The same source and\n" +
			"profile always give the same image. Converted layers are kept, so that the next version converts its changed layers only.",
	}
	f := cmd.Flags()
	f.BoolVar(&flags.push, "push", false, "push the block image beside its source")
	f.StringVar(&flags.to, "to", "", "`repository` to push to instead of the source's")
	f.StringVar(&flags.out, "out", "", "OCI layout `directory` to write the block image to")
	f.StringVar(&flags.tag, "tag", "", "`tag` to give the block image as well; agents need none")
	f.StringVar(&flags.profile, "profile", "", "`file` of what a container reads while it starts ('xylem record'): it is laid out first")
	f.StringVar(&flags.platform, "platform", "", "`os/arch` of a multi-platform image (default this machine's)")
	f.StringVar(&flags.key, "key", "", "`file` of the converter's private key (default converter.key in --root, made if it is missing)")
	f.BoolVar(&flags.unsigned, "unsigned", false, "do not sign; agents elsewhere will not use the image")
	f.StringVar(&flags.keep, "cache", "", "`directory` of converted layers (default convert in --root)")
	addCredentialFlags(cmd, a)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.convert(cmd.Context(), args[0], flags)
		if err != nil {
			return err
		}
		return output.print(a.out, c, func(w io.Writer) { printConverted(w, c) })
	}
	return cmd
}

func printConverted(w io.Writer, c *converted) {
	row(w, "block image", c.Image)
	row(w, "source", c.Source, c.Platform)
	for _, place := range []string{c.Pushed, c.Out} {
		if place != "" {
			row(w, "written to", place)
		}
	}
	row(w, "content", c.Stats.String())
}

func (f *convertFlags) validate(src string) error {
	layout := strings.HasPrefix(src, "oci:")
	switch {
	case f.to != "":
		f.push = true
	case !f.push && f.out == "":
		return usageError{errors.New("say --push or --out DIR")}
	}
	if f.push && layout && f.to == "" {
		return usageError{fmt.Errorf("%s is in no registry: say --to REPOSITORY or --out DIR", src)}
	}
	if f.unsigned && f.key != "" {
		return usageError{errors.New("--unsigned and --key contradict each other")}
	}
	return nil
}

func (a *app) convert(ctx context.Context, src string, flags convertFlags) (_ *converted, err error) {
	if err := flags.validate(src); err != nil {
		return nil, err
	}
	options, err := a.convertOptions(flags)
	if err != nil {
		return nil, err
	}
	registry, err := a.convertRegistry(src, flags.to)
	if err != nil {
		return nil, err
	}
	plugins, err := a.plugins()
	if err != nil {
		return nil, err
	}
	defer plugins.Close()
	registry.Keychain = plugins.Keychain(authn.DefaultKeychain)
	source, err := convert.Open(ctx, src, flags.platform, registry)
	if err != nil {
		return nil, err
	}
	show := newProgress(a.err, a.log)
	defer show.done()
	options.Progress = func(p convert.Progress) { show.update(partName(p), p.Done, p.Total) }
	result, err := convert.Convert(ctx, source, options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, result.Close()) }()
	c := &converted{Image: result.Artifact.Digest.String(), Source: source.Descriptor.Digest.String(), Stats: result.Stats}
	c.Platform = source.Platform.OS + "/" + source.Platform.Architecture
	if flags.out != "" {
		if err := result.WriteLayout(flags.out, flags.tag); err != nil {
			return nil, fmt.Errorf("write %s: %w", flags.out, err)
		}
		c.Out = flags.out
	}
	if flags.push {
		if c.Pushed = flags.to; c.Pushed == "" {
			c.Pushed = src
		}
		if err := result.Push(ctx, flags.to, flags.tag, registry); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// partName names a phase of a layer's work for people.
func partName(p convert.Progress) string {
	if p.Layer < 0 {
		return fmt.Sprintf("image %s", p.Phase)
	}
	return fmt.Sprintf("layer %d %s", p.Layer, p.Phase)
}

func (a *app) convertOptions(flags convertFlags) (convert.Options, error) {
	options := convert.Options{CacheDir: flags.keep, Logger: a.log}
	if isTerminal(a.err) { // the bars say the rest
		options.Logger = newLogger(a.err, max(a.logLevel, slog.LevelWarn))
	}
	if options.CacheDir == "" {
		options.CacheDir = filepath.Join(a.config.Root, "convert")
	}
	if flags.profile != "" {
		text, err := os.ReadFile(flags.profile)
		if err != nil {
			return options, fmt.Errorf("profile: %w", err)
		}
		if options.Profile, err = blockfmt.ParseProfile(text); err != nil {
			return options, advise(fmt.Errorf("%s: %w", flags.profile, err), "make it with 'xylem record'")
		}
	}
	if flags.unsigned {
		return options, nil
	}
	var err error
	if flags.key != "" {
		options.Key, err = convert.LoadKey(flags.key)
		return options, advise(err, "make one with 'xylem key --key %s'", flags.key)
	}
	options.Key, err = convert.GenerateKey(a.config.KeyFile())
	return options, advise(err, "name another file with --key")
}

// convertRegistry applies the configuration's settings of the registry that is read, or else written.
func (a *app) convertRegistry(src, to string) (convert.Registry, error) {
	var r convert.Registry
	if strings.HasPrefix(src, "oci:") {
		src = to
	}
	ref, err := name.ParseReference(src)
	if err != nil {
		return r, nil // convert says it, or there is no registry
	}
	settings := a.config.Registries[ref.Context().RegistryStr()]
	r.PlainHTTP = settings.PlainHTTP
	if settings.CA == "" {
		return r, nil
	}
	pool, err := certPool(settings.CA)
	if err != nil {
		return r, err
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	r.Transport = transport
	return r, nil
}
