package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// layerInfo is what the cache keeps about a converted layer, beside its three files.
type layerInfo struct {
	DiffID        digest.Digest      `json:"diffID"`
	Blob          ocispec.Descriptor `json:"blob"`
	Index         ocispec.Descriptor `json:"index"`
	Metadata      ocispec.Descriptor `json:"metadata"`
	RawSize       int64              `json:"rawSize"`
	Blocks        int                `json:"blocks"`
	Inodes        int                `json:"inodes"`
	StartupBlocks int                `json:"startupBlocks"`
	RunningBlocks int                `json:"runningBlocks"`
}

// Files of a converted layer in its directory.
const (
	blobFile     = "blob"
	indexFile    = "index"
	metadataFile = "metadata"
	infoFile     = "layer.json"
)

// layer is a converted layer: its files lie in dir.
type layer struct {
	layerInfo
	dir    string
	tree   *metadata.Tree
	cached bool
}

// layerJob converts one layer.
type layerJob struct {
	number  int
	diffID  digest.Digest
	desc    ocispec.Descriptor
	profile blockfmt.Profile // what of the profile is about this layer
	open    func(context.Context) (io.ReadCloser, error)
	opts    Options
	encoder *encoder
	budget  budget
}

// convert makes the layer's files in dir, which exists and is empty.
func (j *layerJob) convert(ctx context.Context, dir string) (*layer, error) {
	s, err := newSpool(j.opts.TempDir)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	blob, err := os.Create(filepath.Join(dir, blobFile))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	l := &layer{dir: dir, layerInfo: layerInfo{DiffID: j.diffID}}
	var enc *encoded
	if len(j.profile) == 0 {
		enc, err = j.streamed(ctx, l, s, blob)
	} else {
		enc, err = j.arranged(ctx, l, s, blob)
	}
	if err != nil {
		return nil, err
	}
	if err := blob.Sync(); err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	return l, j.finish(l, enc)
}

// streamed compresses the spool while it grows.
func (j *layerJob) streamed(ctx context.Context, l *layer, s *spool, blob io.Writer) (enc *encoded, err error) {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	defer stop()
	g.Go(func() error { return j.unpack(ctx, l, s) })
	g.Go(func() (err error) {
		enc, err = j.encoder.encode(ctx, &spoolReader{spool: s}, blob, j.encodeProgress(0))
		return err
	})
	return enc, g.Wait()
}

// arranged compresses the spool when it is complete, in the order of the profile.
func (j *layerJob) arranged(ctx context.Context, l *layer, s *spool, blob io.Writer) (*encoded, error) {
	if err := j.unpack(ctx, l, s); err != nil {
		return nil, err
	}
	p := place(l.tree, j.profile, s.size())
	if err := p.apply(l.tree); err != nil {
		return nil, err
	}
	l.StartupBlocks = blocksOf(p.startup)
	return j.encoder.encode(ctx, p.reader(s), blob, j.encodeProgress(s.size()))
}

// blocksOf returns how many blocks n bytes take.
func blocksOf(n int64) int { return int((n + blockfmt.BlockSize - 1) / blockfmt.BlockSize) }

func (j *layerJob) encodeProgress(total int64) func(int64) {
	done := int64(0)
	return func(n int64) {
		done += n
		j.opts.Progress(Progress{Layer: j.number, Phase: PhaseEncode, Done: done, Total: total})
	}
}

// unpack reads the source layer into the layer's tree and the spool, and checks its digest and diffID.
func (j *layerJob) unpack(ctx context.Context, l *layer, s *spool) error {
	rc, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	compressed := &counter{Reader: newVerifier(rc, j.desc, nil), seen: func(done int64) {
		j.opts.Progress(Progress{Layer: j.number, Phase: PhaseFetch, Done: done, Total: j.desc.Size})
	}}
	raw, err := decompress(compressed)
	if err != nil {
		return err
	}
	defer raw.Close()
	tree := newLayerTree(limits{j.opts.MaxEntries, maxLayerMetadata}, func(name string, r io.Reader, size int64) ([]metadata.Extent, error) {
		if err := j.budget.use(size); err != nil {
			return nil, err
		}
		return s.add(sectionOf(name), r, size)
	})
	got, err := ahead(ctx, raw, j.budget, tree.read)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, compressed); err != nil {
		return err
	}
	if got != j.diffID {
		return fmt.Errorf("layer unpacks to diffID %s, its image says %s: %w", got, j.diffID, blockfmt.ErrCorrupt)
	}
	l.tree, l.Inodes = &metadata.Tree{Root: tree.root}, tree.entries
	if err := s.finish(); err != nil {
		return err
	}
	l.RunningBlocks = blocksOf(s.ends[running])
	return s.join(l.tree)
}

// finish writes what describes the blob.
func (j *layerJob) finish(l *layer, enc *encoded) error {
	index, err := enc.builder.Index(enc.Digest)
	if err != nil {
		return err
	}
	encodedIndex := index.Encode()
	indexDigest := digest.FromBytes(encodedIndex)
	l.Blob = ocispec.Descriptor{MediaType: blockfmt.MediaTypeBlob, Digest: enc.Digest, Size: enc.Size, Annotations: map[string]string{
		blockfmt.AnnotationRole:             blockfmt.RoleDevice,
		blockfmt.AnnotationChunkIndexDigest: indexDigest.String(),
	}}
	if l.StartupBlocks > 0 {
		l.Blob.Annotations[blockfmt.AnnotationStartupBlocks] = strconv.Itoa(l.StartupBlocks)
	}
	if l.RunningBlocks > 0 {
		l.Blob.Annotations[blockfmt.AnnotationRunningBlocks] = strconv.Itoa(l.RunningBlocks)
	}
	l.Index = ocispec.Descriptor{MediaType: blockfmt.MediaTypeChunkIndex, Digest: indexDigest, Size: int64(len(encodedIndex)), Annotations: map[string]string{
		blockfmt.AnnotationChunkIndexTarget: enc.Digest.String(),
	}}
	l.RawSize, l.Blocks = enc.RawSize, index.Len()
	l.tree.Devices = []metadata.Device{{Size: enc.RawSize, Digest: enc.Digest}}
	if err := writeFile(filepath.Join(l.dir, indexFile), encodedIndex); err != nil {
		return err
	}
	if l.Metadata, err = j.encoder.writeMetadata(filepath.Join(l.dir, metadataFile), l.tree); err != nil {
		return err
	}
	info, err := json.Marshal(l.layerInfo)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(l.dir, infoFile), info)
}

// newBudget returns the budget that the layers of one conversion share.
func newBudget(max int64) budget {
	var total atomic.Int64
	return budget{max: max, take: total.Add}
}
