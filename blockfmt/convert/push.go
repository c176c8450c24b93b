package convert

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Push puts the block image and its companion into a repository: blobs that are not there yet, then the companion, then the
// manifest by digest, with the source's manifest as subject. A registry without the referrers API gets the fallback
// index under the tag sha256-<hex of the subject>, other entries of which are kept.
//
// target is a repository, or a reference whose repository is meant; empty means the source's. tag, if not empty, is put on
// the block image too.
func (r *Result) Push(ctx context.Context, target, tag string, reg Registry) error {
	if target == "" {
		target = r.src.Ref
	}
	ref, err := reg.parse(target)
	if err != nil {
		return err
	}
	if err := r.push(ctx, ref.Context(), tag, reg); err != nil {
		return fmt.Errorf("push block image to %s: %w", ref.Context(), registryKind(err))
	}
	return nil
}

func (r *Result) push(ctx context.Context, repo name.Repository, tag string, reg Registry) error {
	pusher, err := remote.NewPusher(reg.options(ctx)...)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(4, r.workers))
	report := r.pushProgress()
	for d, c := range r.blobs {
		g.Go(func() error { return pusher.Upload(gctx, repo, &upload{digest: d, content: c, report: report}) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, manifest := range [][]byte{r.Companion, r.Manifest} {
		if err := pusher.Put(ctx, repo.Digest(digest.FromBytes(manifest).String()), rawManifest(manifest)); err != nil {
			return err
		}
	}
	if tag == "" {
		return nil
	}
	return pusher.Put(ctx, repo.Tag(tag), rawManifest(r.Manifest))
}

// pushProgress returns a function that takes the bytes read of a blob and reports those of its layer.
func (r *Result) pushProgress() func(c content, n int64) {
	total, done := map[int]int64{}, map[int]int64{}
	for _, c := range r.blobs {
		total[c.layer] += c.size
	}
	var mu sync.Mutex
	return func(c content, n int64) {
		mu.Lock()
		done[c.layer] = min(done[c.layer]+n, total[c.layer])
		p := Progress{Layer: c.layer, Phase: PhasePush, Done: done[c.layer], Total: total[c.layer]}
		mu.Unlock()
		r.progress(p)
	}
}

// rawManifest is a manifest as the registry client wants it.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return ocispec.MediaTypeImageManifest, nil }

// upload is a blob as the registry client wants it.
type upload struct {
	digest  digest.Digest
	content content
	report  func(c content, n int64)
}

func (u *upload) Digest() (v1.Hash, error)             { return v1.NewHash(u.digest.String()) }
func (u *upload) DiffID() (v1.Hash, error)             { return u.Digest() }
func (u *upload) Size() (int64, error)                 { return u.content.size, nil }
func (u *upload) MediaType() (types.MediaType, error)  { return "application/octet-stream", nil }
func (u *upload) Uncompressed() (io.ReadCloser, error) { return u.Compressed() }
func (u *upload) Compressed() (io.ReadCloser, error) {
	rc, err := u.content.open()
	if err != nil {
		return nil, err
	}
	return &countedBody{rc, u}, nil
}

type countedBody struct {
	io.ReadCloser
	upload *upload
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.upload.report(b.upload.content, int64(n))
	return n, err
}
