package agent

import (
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// A recorder notes what a container reads of an image's blobs: pages in the order of their first read. With the kernel's
// readahead off these are the pages that the program itself touches.
type recorder struct {
	image *image
	pages bool // exactly those that the program touches are to be recorded, not blocks

	mu    sync.Mutex
	seen  []map[int64]bool // per layer: page numbers
	reads []pageRun
}

// pageRun is a run of pages of a layer's blob that was not read before. Bytes.
type pageRun struct {
	layer   int
	off, to int64
}

func newRecorder(im *image) *recorder {
	r := &recorder{image: im, seen: make([]map[int64]bool, len(im.indexes))}
	for i := range r.seen {
		r.seen[i] = map[int64]bool{}
	}
	return r
}

// touch notes a read of n bytes at off of the blob, which may stand for several layers of the image.
func (r *recorder) touch(blob digest.Digest, off, n int64) {
	for layer, ix := range r.image.indexes {
		if ix.Blob() == blob {
			r.touchLayer(layer, off, min(off+n, ix.RawSize()))
			return
		}
	}
}

func (r *recorder) touchLayer(layer int, off, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := off / blockfmt.PageSize; p*blockfmt.PageSize < end; p++ {
		if r.seen[layer][p] {
			continue
		}
		r.seen[layer][p] = true
		start, to := p*blockfmt.PageSize, (p+1)*blockfmt.PageSize
		if last := len(r.reads) - 1; last >= 0 && r.reads[last].layer == layer && r.reads[last].to == start {
			r.reads[last].to = to
			continue
		}
		r.reads = append(r.reads, pageRun{layer, start, to})
	}
}

func (r *recorder) snapshot() []pageRun {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads)
}

// record returns the blocks that were touched, in the order of their first read.
func (r *recorder) record() blockfmt.Record {
	var out blockfmt.Record
	seen := map[blockfmt.BlockPos]bool{}
	for _, rd := range r.snapshot() {
		first, end := r.image.indexes[rd.layer].Find(rd.off, rd.to-rd.off)
		for b := first; b < end; b++ {
			if p := (blockfmt.BlockPos{Layer: rd.layer, Block: b}); !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
	}
	return out
}

// profile translates the reads to ranges of files, which hold for any layout of the image. tree is the image's merged
// metadata.
func (r *recorder) profile(tree *metadata.Tree) (blockfmt.Profile, error) {
	if len(tree.Devices) != len(r.image.indexes) {
		return nil, fmt.Errorf("metadata of %s has %d devices for %d layers: %w",
			r.image.artifact.Digest, len(tree.Devices), len(r.image.indexes), blockfmt.ErrCorrupt)
	}
	locator := metadata.NewLocator(tree)
	var out blockfmt.Profile
	for _, rd := range r.snapshot() {
		for _, piece := range locator.Locate(rd.layer, rd.off, rd.to-rd.off) {
			out = append(out, blockfmt.ProfileRange{
				Layer: r.image.artifact.Layers[rd.layer].DiffID, Path: piece.Path, Offset: piece.Offset, Length: piece.Length})
		}
	}
	return out, nil
}
