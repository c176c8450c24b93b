package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/scheduler/api"
)

// A place is where block images are found: a repository in a registry, or a directory. What Manifest and Blob return is bounded and
// matches the digest asked for; what Range returns is not checked.
type place interface {
	// Referrers lists the manifests of the given artifact type whose subject is d, newest last.
	Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
	Manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	Range(ctx context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error)
}

// conversions know the block images that the cluster made.
type conversions interface {
	// image returns the block image of a source, blockfmt.ErrNotFound if there is none.
	image(ctx context.Context, source digest.Digest) (api.Conversion, error)
	// pushed returns where one is that was pushed.
	pushed(o origin, made api.Conversion) (origin, error)
	// miss says that one is not there any more.
	miss(ctx context.Context, source, image digest.Digest)
}

// discovery finds block images in registries and keeps what it found under dir, one directory an image.
type discovery struct {
	dir   string // Root/images
	place func(origin) (place, error)
	// through returns a place that has what is needed to mount the image with this manifest come through its tree. Default: nothing does.
	through func(ctx context.Context, o origin, image digest.Digest, m ocispec.Manifest, from place) (place, error)
	trusted []ed25519.PublicKey
	made    conversions // nil: what the cluster made is not used
	log     *slog.Logger
}

// find returns the trusted block image of the source manifest, blockfmt.ErrNotFound if there is none: the registry's, or else the
// one that the cluster made.
func (d *discovery) find(ctx context.Context, o origin, source digest.Digest) (*image, error) {
	im, err := d.findBeside(ctx, o, source)
	if d.made == nil || !errors.Is(err, blockfmt.ErrNotFound) {
		return im, err
	}
	made, e := d.made.image(ctx, source)
	if e != nil {
		return nil, err
	}
	im, e = d.loadMade(ctx, o, source, made)
	if e != nil {
		d.log.Warn("the cluster's block image not used", "source", source, "image", made.Image, "err", e)
		return nil, err
	}
	return im, nil
}

// loadMade loads a block image that the cluster made.
func (d *discovery) loadMade(ctx context.Context, o origin, source digest.Digest, made api.Conversion) (_ *image, err error) {
	if made.Holder != nil {
		o.Cluster = source
	} else if o, err = d.made.pushed(o, made); err != nil {
		return nil, err
	}
	from, err := d.place(o)
	if err != nil {
		return nil, err
	}
	manifest, err := from.Manifest(ctx, made.Image)
	if err != nil {
		if errors.Is(err, blockfmt.ErrNotFound) { // somebody removed it
			d.made.miss(ctx, source, made.Image)
		}
		return nil, err
	}
	return d.load(ctx, o, source, manifest)
}

// has says whether there is a block image of the source that find would return, without fetching it.
func (d *discovery) has(ctx context.Context, o origin, source digest.Digest) (bool, error) {
	from, err := d.place(o)
	if err != nil {
		return false, err
	}
	found, err := d.candidates(ctx, from, source)
	return slices.ContainsFunc(found, func(manifest []byte) bool { return d.trusts(ctx, source, manifest) == nil }), err
}

// trusts returns nil for a block image that a trusted converter signed, or that the cluster made of the source.
func (d *discovery) trusts(ctx context.Context, source digest.Digest, manifest []byte) error {
	err := blockfmt.VerifySignature(manifest, d.trusted)
	if err == nil || d.made == nil {
		return err
	}
	made, e := d.made.image(ctx, source)
	if e == nil && made.Image == digest.FromBytes(manifest) {
		return nil
	}
	return err
}

// findBeside returns the trusted block image that lies beside its source. Of several it takes the one with the most startup blocks.
func (d *discovery) findBeside(ctx context.Context, o origin, source digest.Digest) (*image, error) {
	from, err := d.place(o)
	if err != nil {
		return nil, err
	}
	found, err := d.candidates(ctx, from, source)
	if err != nil {
		return nil, fmt.Errorf("look for a block image of %s@%s: %w", o, source, err)
	}
	err = fmt.Errorf("no block image of %s@%s: %w", o, source, blockfmt.ErrNotFound)
	for _, manifest := range found {
		im, e := d.load(ctx, o, source, manifest)
		if e == nil {
			return im, nil
		}
		if ctx.Err() != nil {
			return nil, e
		}
		d.log.Warn("block image not used", "source", source, "image", digest.FromBytes(manifest), "err", e)
		err = errors.Join(err, e)
	}
	return nil, err
}

// maxCandidates bounds the block images of one source that are looked at.
const maxCandidates = 16

// candidates returns the manifests that may be block images of the source, the best first. Registries list them in any
// order.
func (d *discovery) candidates(ctx context.Context, from place, source digest.Digest) ([][]byte, error) {
	referrers, err := from.Referrers(ctx, source, "")
	if err != nil {
		return nil, err
	}
	referrers = slices.DeleteFunc(referrers, func(d ocispec.Descriptor) bool { return !mayBeBlockImage(d) })
	var found [][]byte
	for _, r := range referrers[:min(len(referrers), maxCandidates)] {
		manifest, err := from.Manifest(ctx, r.Digest)
		switch {
		case err == nil:
			found = append(found, manifest)
		case errors.Is(err, blockfmt.ErrNotFound) || errors.Is(err, blockfmt.ErrCorrupt):
			d.log.Warn("block image not used", "source", source, "image", r.Digest, "err", err)
		default:
			return nil, err
		}
	}
	slices.SortFunc(found, func(a, b []byte) int {
		return cmp.Or(cmp.Compare(blockfmt.StartupBlocks(b), blockfmt.StartupBlocks(a)), bytes.Compare(a, b))
	})
	return found, nil
}

// mayBeBlockImage says whether a referrer is worth a look. Some registries list the type of a manifest's config in place of
// its artifact type, so the question cannot be left to them.
func mayBeBlockImage(d ocispec.Descriptor) bool {
	return d.ArtifactType == blockfmt.ArtifactType || d.ArtifactType == ocispec.MediaTypeImageConfig || d.ArtifactType == ""
}

// load fetches what is needed to mount the block image with this manifest and keeps it.
func (d *discovery) load(ctx context.Context, o origin, source digest.Digest, manifest []byte) (*image, error) {
	id := digest.FromBytes(manifest)
	dir := filepath.Join(d.dir, id.Encoded())
	if im, err := openImage(dir); err == nil {
		return im, nil
	}
	from, err := d.place(o)
	if err != nil {
		return nil, err
	}
	if err := d.trusts(ctx, source, manifest); err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w: %w", id, err, blockfmt.ErrCorrupt)
	}
	if m.Config.Size > blockfmt.MaxManifestSize {
		return nil, fmt.Errorf("config of %s has %d bytes, at most %d: %w", id, m.Config.Size, blockfmt.MaxManifestSize, blockfmt.ErrUnsupported)
	}
	if d.through != nil {
		if from, err = d.through(ctx, o, id, m, from); err != nil {
			return nil, err
		}
	}
	config, err := from.Blob(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	a, err := blockfmt.ParseArtifact(manifest, config)
	if err != nil {
		return nil, err
	}
	if a.Source.Digest != source {
		return nil, fmt.Errorf("block image %s is of %s, not %s: %w", id, a.Source.Digest, source, blockfmt.ErrCorrupt)
	}
	tmp, err := os.MkdirTemp(d.dir, ".tmp-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) // nothing is left of it after the rename
	if err := d.fetchParts(ctx, from, a, tmp); err != nil {
		return nil, err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{manifestFile: manifest, configFile: config, originFile: text} {
		if err := writeBytes(filepath.Join(tmp, name), data); err != nil {
			return nil, err
		}
	}
	return d.publish(tmp, dir)
}

// publish gives a completed directory its name. The image may have been loaded by another call in the meantime.
func (d *discovery) publish(tmp, dir string) (*image, error) {
	if err := os.RemoveAll(dir); err != nil { // openImage refused it
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	if err := syncDir(d.dir); err != nil {
		return nil, err
	}
	return openImage(dir)
}

// fetchParts writes the chunk indexes, the merged metadata and the startup record of a into dir.
func (d *discovery) fetchParts(ctx context.Context, from place, a *blockfmt.Artifact, dir string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, l := range a.Layers {
		g.Go(func() error {
			data, err := from.Blob(ctx, l.Index)
			if err != nil {
				return err
			}
			if _, err := decodeIndex(l, data); err != nil {
				return err
			}
			return writeBytes(filepath.Join(dir, indexFile(i)), data)
		})
	}
	g.Go(func() error { return fetchMetadata(ctx, from, a.Metadata, filepath.Join(dir, metadataFile)) })
	if a.Companion != "" {
		g.Go(func() error {
			if err := fetchRecord(ctx, from, a, filepath.Join(dir, recordFile)); err != nil {
				d.log.Warn("startup record not used", "image", a.Digest, "err", err) // only speed depends on it
			}
			return nil
		})
	}
	return g.Wait()
}

// fetchMetadata writes an EROFS metadata image, decompressed and checked against its digest, to path.
func fetchMetadata(ctx context.Context, from place, desc ocispec.Descriptor, path string) error {
	stored, err := from.Blob(ctx, desc)
	if err != nil {
		return err
	}
	var raw io.Reader = bytes.NewReader(stored)
	want := desc.Digest
	if desc.MediaType == blockfmt.MediaTypeEROFSZstd {
		z, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(blockfmt.MaxMetadataSize))
		if err != nil {
			return err
		}
		defer z.Close()
		raw, want = z, digest.Digest(desc.Annotations[blockfmt.AnnotationUncompressedDigest])
	}
	if err := want.Validate(); err != nil {
		return fmt.Errorf("metadata %s: uncompressed digest %.80q: %w", desc.Digest, want, blockfmt.ErrCorrupt)
	}
	return writeDurable(path, 0o600, func(w io.Writer) error {
		v := want.Verifier()
		n, err := io.Copy(io.MultiWriter(w, v), io.LimitReader(raw, blockfmt.MaxMetadataSize+1))
		if err != nil {
			return fmt.Errorf("metadata %s: %w: %w", desc.Digest, err, blockfmt.ErrCorrupt)
		}
		if n > blockfmt.MaxMetadataSize || !v.Verified() {
			return fmt.Errorf("metadata %s does not expand to %s: %w", desc.Digest, want, blockfmt.ErrCorrupt)
		}
		return nil
	})
}

func companion(ctx context.Context, from place, a *blockfmt.Artifact) (*blockfmt.Companion, error) {
	if a.Companion == "" {
		return nil, fmt.Errorf("block image %s has no companion: %w", a.Digest, blockfmt.ErrNotFound)
	}
	manifest, err := from.Manifest(ctx, a.Companion)
	if err != nil {
		return nil, err
	}
	return blockfmt.ParseCompanion(manifest, len(a.Layers))
}

func fetchRecord(ctx context.Context, from place, a *blockfmt.Artifact, path string) error {
	c, err := companion(ctx, from, a)
	if err != nil || c.Record == nil {
		return err
	}
	text, err := from.Blob(ctx, *c.Record)
	if err != nil {
		return err
	}
	if _, err := blockfmt.ParseRecord(text); err != nil {
		return err
	}
	return writeBytes(path, text)
}

// prefixMetadata returns the path of the merged metadata of im's first n layers, making it if need be.
func (d *discovery) prefixMetadata(ctx context.Context, im *image, n int) (string, error) {
	if n == len(im.chains) {
		return filepath.Join(im.dir, metadataFile), nil
	}
	path := filepath.Join(im.dir, fmt.Sprintf("prefix-%d.erofs", n))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	from, err := d.place(im.origin)
	if err != nil {
		return "", err
	}
	c, err := companion(ctx, from, im.artifact)
	if err != nil {
		return "", fmt.Errorf("metadata of the first %d layers: %w", n, err)
	}
	trees := make([]*metadata.Tree, n)
	for i := range trees {
		if trees[i], err = layerTree(ctx, from, c.Layers[i], filepath.Join(im.dir, fmt.Sprintf(".layer-%d.erofs", i))); err != nil {
			return "", fmt.Errorf("metadata of layer %d: %w", i, err)
		}
	}
	merged, err := metadata.Merge(trees)
	if err != nil {
		return "", err
	}
	return path, writeDurable(path, 0o600, func(w io.Writer) error {
		_, err := merged.WriteTo(w)
		return err
	})
}

// layerTree reads the metadata of one layer, by way of a file at path that does not stay.
func layerTree(ctx context.Context, from place, desc ocispec.Descriptor, path string) (*metadata.Tree, error) {
	if err := fetchMetadata(ctx, from, desc, path); err != nil {
		return nil, err
	}
	defer os.Remove(path)
	return readTree(path)
}

func readTree(path string) (*metadata.Tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return metadata.Read(f, st.Size())
}
