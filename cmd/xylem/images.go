package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/spf13/cobra"
)

func newImages(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "List the block images that the agent has on this node", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		images, err := a.client().Images(cmd.Context())
		if err != nil {
			return err
		}
		return output.print(a.out, images, func(w io.Writer) {
			row(w, "REF", "BLOCK IMAGE", "LAYERS", "BLOCKS", "RECORDED", "USERS")
			for _, im := range images {
				row(w, im.Ref, shortDigest(im.Image), im.Layers, im.Blocks, im.Recorded, im.Users)
			}
		})
	}
	return cmd
}

func newRecord(a *app) *cobra.Command {
	return group("record", "Record what an image's containers read while they start, for convert --profile", newRecordStart(a), newRecordStop(a))
}

func newRecordStart(a *app) *cobra.Command {
	flags := containerdFlags{namespace: namespaces.Default}
	cmd := &cobra.Command{
		Use: "start REF", Short: "Begin to record; no container of the image may be running", Args: usage(cobra.ExactArgs(1)),
		Long: "Start begins to record which pages of the image its containers read, until `xylem record stop`. The image is mounted anew\n" +
			"for that, so nobody may be using it. It is slow while it is recorded.",
	}
	cmd.Flags().StringVar(&flags.address, "address", defaultContainerd, "`socket` of containerd, if it runs, to have it forget removed containers")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.collectGarbage(cmd.Context(), &flags); err != nil {
			a.log.Debug("containerd's garbage is not collected", "error", err)
		}
		return a.client().StartRecording(cmd.Context(), args[0])
	}
	return cmd
}

// collectGarbage has containerd remove the snapshots of removed containers now. It would do so at some later time, and
// until then the snapshotter counts them as users of the image.
func (a *app) collectGarbage(ctx context.Context, flags *containerdFlags) error {
	client, ctx, err := flags.connect(ctx, a.log)
	if err != nil {
		return err
	}
	defer client.Close()
	service := client.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Minute))
	if err != nil {
		return err
	}
	return service.Delete(ctx, lease, leases.SynchronousDelete)
}

func newRecordStop(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "stop REF", Short: "End the recording and print the profile", Args: usage(cobra.ExactArgs(1))}
	cmd.Flags().StringVarP(&file, "file", "f", "", "`file` to write the profile to (default stdout)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		profile, err := a.client().StopRecording(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if file == "" {
			_, err = a.out.Write(profile.Encode())
			return err
		}
		if err := os.WriteFile(file, profile.Encode(), 0o644); err != nil {
			return fmt.Errorf("profile: %w", err)
		}
		return nil
	}
	return cmd
}
