package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// attempts is how often a layer is tried while its source fails with ErrTransient, with a pause of retryPause, then twice that.
const (
	attempts   = 3
	retryPause = time.Second
)

// Convert makes the block image of src. The Result must be closed.
//
// Errors wrap ErrCorrupt for a source that contradicts itself (digests, diffIDs, archives), ErrUnsupported for one beyond the
// limits of the format or of Options, what the registry said, or a local error such as ENOSPC.
func Convert(ctx context.Context, src *Source, opts Options) (*Result, error) {
	start := time.Now()
	opts = opts.withDefaults()
	enc, err := newEncoder(opts.Workers)
	if err != nil {
		return nil, err
	}
	cache, err := openLayerCache(opts.CacheDir, opts.TempDir)
	if err != nil {
		return nil, fmt.Errorf("conversion cache: %w", err)
	}
	c := &conversion{src: src, opts: opts, encoder: enc, cache: cache, budget: newBudget(opts.MaxUncompressed)}
	r, err := c.run(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("convert %s: %w", src.Ref, err), cache.close())
	}
	r.Stats.Duration = time.Since(start)
	opts.Logger.Info("converted", "image", src.Ref, "stats", r.Stats.String())
	return r, nil
}

// conversion is one call of Convert.
type conversion struct {
	src     *Source
	opts    Options
	encoder *encoder
	cache   *layerCache
	budget  budget
}

func (c *conversion) run(ctx context.Context) (*Result, error) {
	layers, err := c.layers(ctx)
	if err != nil {
		return nil, err
	}
	return c.assemble(layers)
}

// layers converts every distinct layer, the largest first, and returns them in the image's order.
func (c *conversion) layers(ctx context.Context) ([]*layer, error) {
	first := map[digest.Digest]int{}
	var order []int
	for i, d := range c.src.DiffIDs {
		if _, ok := first[d]; !ok {
			first[d] = i
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(c.src.Layers[b].Size, c.src.Layers[a].Size) })
	layers := make([]*layer, len(c.src.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.opts.Workers)
	for _, i := range order {
		g.Go(func() (err error) {
			if layers[i], err = c.layer(ctx, i); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, d := range c.src.DiffIDs {
		if layers[i] == nil {
			again, err := c.again(layers[first[d]])
			if err != nil {
				return nil, err
			}
			layers[i] = again
		}
	}
	return layers, nil
}

// again returns a layer that occurs a second time in the image, with a tree of its own.
func (c *conversion) again(l *layer) (*layer, error) {
	tree, err := readMetadata(l.path(metadataFile))
	if err != nil {
		return nil, err
	}
	return &layer{layerInfo: l.layerInfo, dir: l.dir, tree: tree, cached: true}, nil
}

// layer takes a layer from the cache or converts it.
func (c *conversion) layer(ctx context.Context, i int) (*layer, error) {
	var profile blockfmt.Profile
	for _, r := range c.opts.Profile {
		if r.Layer == c.src.DiffIDs[i] {
			profile = append(profile, r)
		}
	}
	key := layerKey(c.src.DiffIDs[i], profile)
	l, err := c.cache.load(key)
	if err == nil {
		size := c.src.Layers[i].Size
		c.opts.Progress(Progress{Layer: i, Phase: PhaseFetch, Done: size, Total: size, Cached: true})
		c.opts.Progress(Progress{Layer: i, Phase: PhaseEncode, Done: l.RawSize, Total: l.RawSize, Cached: true})
		return l, nil
	}
	if !errors.Is(err, blockfmt.ErrNotFound) {
		return nil, err
	}
	if errors.Is(err, blockfmt.ErrCorrupt) {
		c.opts.Logger.Warn("cached layer is damaged, converting again", "error", err)
	}
	job := &layerJob{
		number: i, diffID: c.src.DiffIDs[i], desc: c.src.Layers[i], profile: profile, opts: c.opts, encoder: c.encoder, budget: c.budget,
		open: func(ctx context.Context) (io.ReadCloser, error) { return c.src.store.blob(ctx, c.src.Layers[i]) },
	}
	for attempt := 1; ; attempt++ {
		l, err := c.convert(ctx, job, key)
		if attempt == attempts || !errors.Is(err, blockfmt.ErrTransient) {
			return l, err
		}
		c.opts.Logger.Warn("layer failed, trying again", "layer", i, "error", err)
		select {
		case <-time.After(retryPause << (attempt - 1)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// convert converts a layer in a work directory and keeps it in the cache.
func (c *conversion) convert(ctx context.Context, job *layerJob, key string) (_ *layer, err error) {
	work, lock, err := c.cache.workDir()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	l, err := job.convert(ctx, work)
	if err == nil {
		l.dir, err = c.cache.keep(work, key)
	}
	if err != nil {
		return nil, errors.Join(err, removeAll(work))
	}
	return l, nil
}

// assemble merges the layers and builds the artifact.
func (c *conversion) assemble(layers []*layer) (*Result, error) {
	r := &Result{src: c.src, cache: c.cache, progress: c.opts.Progress, workers: c.opts.Workers, blobs: map[digest.Digest]content{}}
	record := startupRecord(c.opts.Profile, layers)
	trees := make([]*metadata.Tree, len(layers))
	for i, l := range layers {
		trees[i] = l.tree
	}
	merged, err := metadata.Merge(trees)
	if err != nil {
		return nil, fmt.Errorf("merge layers: %w", err)
	}
	if r.dir, r.lock, err = c.cache.workDir(); err != nil {
		return nil, err
	}
	if err := r.build(layers, merged, record, c.opts); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// startupRecord translates a profile into the blocks that hold its ranges, each once.
func startupRecord(profile blockfmt.Profile, layers []*layer) blockfmt.Record {
	number := map[digest.Digest]int{}
	for i, l := range slices.Backward(layers) {
		number[l.DiffID] = i
	}
	var record blockfmt.Record
	seen := map[blockfmt.BlockPos]bool{}
	for _, r := range profile {
		i, ok := number[r.Layer]
		if !ok {
			continue
		}
		in := layers[i].tree.Lookup(r.Path)
		if in == nil {
			continue
		}
		for _, e := range in.Extents {
			start, end := max(r.Offset, e.FileOffset), min(r.Offset+min(r.Length, in.Size), e.FileOffset+e.Length)
			if start >= end {
				continue
			}
			last := (end - 1 - e.FileOffset + e.DeviceOffset) / blockfmt.BlockSize
			for b := (start - e.FileOffset + e.DeviceOffset) / blockfmt.BlockSize; b <= last; b++ {
				if pos := (blockfmt.BlockPos{Layer: i, Block: int(b)}); !seen[pos] {
					seen[pos] = true
					record = append(record, pos)
				}
			}
		}
	}
	return record
}

// build writes the merged metadata image and sets everything else of the result.
func (r *Result) build(layers []*layer, merged *metadata.Tree, record blockfmt.Record, opts Options) (err error) {
	a := &blockfmt.Artifact{Source: r.src.Descriptor, Platform: r.src.Platform}
	companion := &blockfmt.Companion{Source: bare(r.src.Descriptor)}
	for i, l := range layers {
		a.Layers = append(a.Layers, blockfmt.Layer{DiffID: l.DiffID, Blob: l.Blob, Index: l.Index, StartupBlocks: l.StartupBlocks, RunningBlocks: l.RunningBlocks})
		companion.Layers = append(companion.Layers, l.Metadata)
		r.blobs[l.Blob.Digest] = content{layer: i, size: l.Blob.Size, path: l.path(blobFile)}
		r.blobs[l.Index.Digest] = content{layer: i, size: l.Index.Size, path: l.path(indexFile)}
		r.blobs[l.Metadata.Digest] = content{layer: i, size: l.Metadata.Size, path: l.path(metadataFile)}
		r.Stats.add(l, r.src.Layers[i].Size)
	}
	path := r.path(metadataFile)
	if a.Metadata, err = r.encode(path, merged, opts); err != nil {
		return err
	}
	r.blobs[a.Metadata.Digest] = content{layer: -1, size: a.Metadata.Size, path: path}
	if len(record) > 0 {
		desc := r.keep(record.Encode(), blockfmt.MediaTypeRecord)
		companion.Record = &desc
	}
	r.keep([]byte("{}"), ocispec.MediaTypeEmptyJSON)
	if r.Companion, err = companion.Build(); err != nil {
		return err
	}
	a.Companion = digest.FromBytes(r.Companion)
	if r.Manifest, r.Config, err = a.Build(r.src.Config); err != nil {
		return err
	}
	r.keep(r.Config, ocispec.MediaTypeImageConfig)
	if opts.Key != nil {
		if r.Manifest, err = blockfmt.Sign(r.Manifest, opts.Key); err != nil {
			return err
		}
	}
	a.Digest = digest.FromBytes(r.Manifest)
	r.Artifact = a
	r.Stats.MetadataSize, r.Stats.Files = a.Metadata.Size, countInodes(merged)
	return nil
}
