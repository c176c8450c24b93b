package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
)

const (
	manyImages = 20
	manyBytes  = 100 << 20 // in all of them together
)

// manyImages compares 20 images that an agent takes from another at once with one image of the same bytes.
func (b *bench) manyImages(ctx context.Context) (err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: 2, Link: lab.Link{Up: lab.Gbit, Down: lab.Gbit}, Agents: true, AgentConfig: "fill = true\n", Scheduler: true, Xylem: b.Xylem})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	var many, one []float64
	for round := range b.Rounds {
		for _, images := range []int{1, manyImages} {
			took, err := takeImages(ctx, l, fmt.Sprintf("round%d-of%d", round, images), images)
			if err != nil {
				return err
			}
			if images == 1 {
				one = append(one, took.Seconds())
			} else {
				many = append(many, took.Seconds())
			}
		}
	}
	b.Add(figures.Ratio("many_images_ratio", many, one))
	return nil
}

// takeImages has one host take images, and returns how long another then takes for the same, all at once.
func takeImages(ctx context.Context, l *lab.Lab, name string, n int) (time.Duration, error) {
	refs := make([]string, n)
	for i := range refs {
		image, err := noise(fmt.Sprint(name, i), manyBytes/n)
		if err != nil {
			return 0, err
		}
		if refs[i], err = l.Services.Push(ctx, fmt.Sprintf("%s-%d:1", name, i), image); err != nil {
			return 0, err
		}
		if _, err := l.Services.Convert(ctx, refs[i], "--push"); err != nil {
			return 0, err
		}
	}
	var took time.Duration
	for _, h := range l.Hosts() {
		start := time.Now()
		g, mounting := errgroup.WithContext(ctx)
		for i, ref := range refs {
			g.Go(func() error {
				dir := l.Services.Path(fmt.Sprintf("%s-%d-%s", name, i, h.Name))
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				_, err := client(h).Mount(mounting, ref, dir)
				return err
			})
		}
		if err := errors.Join(g.Wait(), full(ctx, 3*time.Minute, h)); err != nil {
			return 0, err
		}
		took = time.Since(start)
	}
	return took, nil
}

// noise returns an image of one file that cannot be compressed.
func noise(seed string, size int) (v1.Image, error) {
	var key [32]byte
	copy(key[:], seed)
	data := make([]byte, size)
	if _, err := io.ReadFull(rand.NewChaCha8(key), data); err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "noise", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	return mutate.ConfigFile(image, config)
}
