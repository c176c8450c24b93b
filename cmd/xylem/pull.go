package main

import (
	"context"
	"fmt"
	"io"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// pulled is what `xylem pull` prints.
type pulled struct {
	Name        string  `json:"name"`
	Digest      string  `json:"digest"`
	Snapshotter string  `json:"snapshotter"`
	Seconds     float64 `json:"seconds"`
}

func newPull(a *app) *cobra.Command {
	var flags containerdFlags
	cmd := &cobra.Command{
		Use: "pull REF", Short: "Pull an image into containerd, lazily", Args: usage(cobra.ExactArgs(1)),
		Long: "Pull has containerd pull the image with the xylem snapshotter: an image with a block image is mounted without being\n" +
			"downloaded; any other one is downloaded and unpacked as ever.",
	}
	flags.add(cmd)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, ctx, err := flags.connect(cmd.Context(), a.log)
		if err != nil {
			return err
		}
		defer client.Close()
		start := time.Now()
		image, err := a.pull(ctx, client, args[0], &flags)
		if err != nil {
			return err
		}
		p := pulled{image.Name(), image.Target().Digest.String(), flags.snapshotter, time.Since(start).Seconds()}
		return output.print(a.out, p, func(w io.Writer) {
			fmt.Fprintf(w, "pulled %s (%s) into snapshotter %s in %.2f s\n", p.Name, p.Digest, p.Snapshotter, p.Seconds)
		})
	}
	return cmd
}

// pull has containerd pull and prepare an image. The snapshotter gets the image's name and digest with every layer and
// decides which layers it needs.
func (a *app) pull(ctx context.Context, client *containerd.Client, ref string, flags *containerdFlags) (containerd.Image, error) {
	ref, err := canonical(ref)
	if err != nil {
		return nil, err
	}
	if err := flags.checkSnapshotter(ctx, client); err != nil {
		return nil, err
	}
	progress := newProgress(a.err, a.log)
	defer progress.done()
	watch := watchContent(ctx, client.ContentStore(), progress)
	defer watch()
	options := []containerd.RemoteOpt{
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(flags.snapshotter),
		containerd.WithResolver(resolver(ctx, flags.hostsDir, a.config.Registries)),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)),
		containerd.WithImageHandler(countLayers(progress)),
	}
	if flags.platform != "" {
		options = append(options, containerd.WithPlatform(flags.platform))
	}
	image, err := client.Pull(ctx, ref, options...)
	if err != nil {
		return nil, containerdError(fmt.Errorf("pull %s: %w", ref, err), flags)
	}
	return image, nil
}

// countLayers tells the progress about every layer that is really downloaded.
func countLayers(p progress) images.Handler {
	return images.HandlerFunc(func(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			p.update(layerName(desc.Digest.Encoded()), 0, desc.Size)
		}
		return nil, nil
	})
}

func layerName(digest string) string { return "layer " + digest[:min(12, len(digest))] }
