package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/nodelab"
)

// idleImages is how many images are mounted when the idle agent's memory is measured.
const idleImages = 20

// idle measures the agent's memory with versions of the image mounted, each with a layer of its own on top.
func (b *bench) idle(ctx context.Context) error {
	layers := b.lab.Path("versions")
	var refs []string
	for i := range idleImages {
		image, err := version(b.source, i)
		if err != nil {
			return err
		}
		ref, err := b.lab.Push(ctx, fmt.Sprintf("demo:v%d", i), image)
		if err != nil {
			return err
		}
		if _, err := b.lab.Reconvert(ctx, ref, layers, "--push"); err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	var rss []float64
	for range b.rounds {
		n, err := b.idleRSS(ctx, refs)
		if err != nil {
			return err
		}
		rss = append(rss, float64(n))
	}
	b.add(figures.Summary("agent_rss_idle_bytes", "B", rss))
	return nil
}

func (b *bench) idleRSS(ctx context.Context, refs []string) (rss int64, err error) {
	node, err := b.lab.Node(ctx, nodelab.NodeConfig{Xylem: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	for i, ref := range refs {
		dir := b.lab.Path(fmt.Sprintf("mount%d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, err
		}
		if _, err := node.Xylem(ctx, "mount", ref, dir); err != nil {
			return 0, err
		}
	}
	return node.RSS()
}

// version returns the image with one more layer, which no other version has.
func version(image v1.Image, number int) (v1.Image, error) {
	content := fmt.Appendf(nil, "%d\n", number)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "app/version", Mode: 0o644, Size: int64(len(content))})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layer)
}
