package main

import (
	"io"

	"github.com/spf13/cobra"
)

func newCache(a *app) *cobra.Command {
	return group("cache", "Look at and tidy the agent's block cache", newCacheList(a), newCacheGC(a), newCacheScrub(a))
}

func newCacheList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List the blobs in the cache, and how much of them is there", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		blobs, err := a.client().CacheList(cmd.Context())
		if err != nil {
			return err
		}
		return output.print(a.out, blobs, func(w io.Writer) {
			row(w, "BLOB", "KIND", "SIZE", "HERE", "COMPLETE", "IN USE")
			for _, b := range blobs {
				kind := "block image"
				if b.Plain {
					kind = "plain"
				}
				row(w, shortDigest(b.Blob), kind, bytesText(b.Size), bytesText(b.Valid), b.Complete, b.Open)
			}
		})
	}
	return cmd
}

func newCacheGC(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "gc", Short: "Remove what no mounted image needs", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		result, err := a.client().CacheGC(cmd.Context())
		if err != nil {
			return err
		}
		return output.print(a.out, result, func(w io.Writer) {
			row(w, "freed", bytesText(result.FreedBytes))
			for _, image := range result.Images {
				row(w, "removed image", image)
			}
		})
	}
	return cmd
}

func newCacheScrub(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "scrub", Short: "Verify everything in the cache and remove what is damaged", Args: usage(cobra.NoArgs),
		Long: "Scrub reads the whole cache and compares it with its digests. What is damaged is removed and fetched again when it is needed.",
	}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		result, err := a.client().CacheScrub(cmd.Context())
		if err != nil {
			return err
		}
		return output.print(a.out, result, func(w io.Writer) {
			row(w, "", "VERIFIED", "DAMAGED")
			row(w, "compressed blocks", result.Blocks, result.BadBlocks)
			row(w, "decompressed blocks", result.Data, result.BadData)
			row(w, "plain blobs and manifests", result.Plain, result.BadPlain)
		})
	}
	return cmd
}
