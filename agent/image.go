package agent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/xylem-project/xylem/blockfmt"
)

// image is a block image whose manifest, chunk indexes and metadata are on this node, in a directory of its own:
//
//	manifest.json config.json   as in the registry, verified and trusted when they were written
//	origin.json                 where its blocks come from
//	index-0 index-1 …           chunk indexes
//	metadata.erofs              merged metadata of all layers
//	prefix-1.erofs …            merged metadata of the first n layers, made when containerd asks for it
//	record                      startup record of this node's first run, or the one published with the image
//
// The directory is written under another name, synced and renamed: it is there as a whole or not at all. Immutable but for
// prefix-* and record.
type image struct {
	dir      string
	artifact *blockfmt.Artifact
	origin   origin
	indexes  []*blockfmt.Index // per layer
	chains   []digest.Digest   // chain ID of every prefix
}

// origin says where an image was found.
type origin struct {
	Ref        string `json:"ref"`              // as the user named it, may be empty
	Repository string `json:"repository"`       // host/name
	Layout     string `json:"layout,omitempty"` // the OCI image layout that this node converted it to, instead of the repository
	// Cluster is the source of which an agent of the cluster made the block image and holds it, instead of the repository.
	Cluster digest.Digest `json:"cluster,omitempty"`
}

func (o origin) String() string {
	if o.Layout != "" {
		return o.Layout
	}
	if o.Cluster != "" {
		return "cluster:" + o.Cluster.String()
	}
	return o.Repository
}

const (
	manifestFile = "manifest.json"
	configFile   = "config.json"
	originFile   = "origin.json"
	metadataFile = "metadata.erofs"
	recordFile   = "record"
)

func indexFile(layer int) string { return "index-" + strconv.Itoa(layer) }

// openImage reads an image's directory.
func openImage(dir string) (*image, error) {
	manifest, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, err
	}
	config, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return nil, err
	}
	im := &image{dir: dir}
	if im.artifact, err = blockfmt.ParseArtifact(manifest, config); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, originFile))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &im.origin); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", originFile, err, blockfmt.ErrCorrupt)
	}
	for i, l := range im.artifact.Layers {
		data, err := os.ReadFile(filepath.Join(dir, indexFile(i)))
		if err != nil {
			return nil, err
		}
		ix, err := decodeIndex(l, data)
		if err != nil {
			return nil, err
		}
		im.indexes = append(im.indexes, ix)
	}
	im.chains = im.artifact.ChainIDs()
	return im, nil
}

func decodeIndex(l blockfmt.Layer, data []byte) (*blockfmt.Index, error) {
	if got := digest.FromBytes(data); got != l.Index.Digest {
		return nil, fmt.Errorf("chunk index of %s has digest %s, want %s: %w", l.Blob.Digest, got, l.Index.Digest, blockfmt.ErrCorrupt)
	}
	return blockfmt.DecodeIndex(data, l.Blob.Digest, l.Blob.Size)
}

// record returns the image's startup order: the recorded one, else the blocks that the converter put first.
func (im *image) record() blockfmt.Record {
	if text, err := os.ReadFile(filepath.Join(im.dir, recordFile)); err == nil {
		if r, err := blockfmt.ParseRecord(text); err == nil {
			return im.within(r)
		}
	}
	var r blockfmt.Record
	for i, l := range im.artifact.Layers {
		for b := range min(l.StartupBlocks, im.indexes[i].Len()) {
			r = append(r, blockfmt.BlockPos{Layer: i, Block: b})
		}
	}
	return r
}

// startupBlocks returns how many blocks the converter put first, by a profile.
func (im *image) startupBlocks() (n int) {
	for _, l := range im.artifact.Layers {
		n += l.StartupBlocks
	}
	return n
}

// smallestFirst returns the layers by how much of them running programs may read: more of a small layer than of a large one is
// used, in proportion, and all small ones together are there in no time.
func (im *image) smallestFirst() []int {
	layers := make([]int, len(im.artifact.Layers))
	for i := range layers {
		layers[i] = i
	}
	slices.SortStableFunc(layers, func(a, b int) int {
		return cmp.Compare(im.artifact.Layers[a].RunningBlocks, im.artifact.Layers[b].RunningBlocks)
	})
	return layers
}

// within drops positions that the image does not have: a record comes from outside.
func (im *image) within(r blockfmt.Record) blockfmt.Record {
	kept := r[:0]
	for _, p := range r {
		if p.Layer < len(im.indexes) && p.Block < im.indexes[p.Layer].Len() {
			kept = append(kept, p)
		}
	}
	return kept
}

// hasRecord says whether a startup record lies with the image.
func (im *image) hasRecord() bool {
	_, err := os.Stat(filepath.Join(im.dir, recordFile))
	return !errors.Is(err, os.ErrNotExist)
}

// prefix returns how many layers the chain ID stands for, 0 if it is no prefix of the image.
func (im *image) prefix(chain digest.Digest) int {
	for i, id := range im.chains {
		if id == chain {
			return i + 1
		}
	}
	return 0
}
