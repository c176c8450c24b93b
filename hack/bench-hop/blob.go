package main

import (
	"crypto/rand"
	"fmt"
	"syscall"

	"context"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// blob is an image's only blob, of blocks of 512 KiB that are stored in about 180 KiB as those of real images are.
type blob struct {
	index   *blockfmt.Index
	stored  []byte
	lengths []int64
}

// description is all of a blob but its bytes.
type description struct {
	Blob    digest.Digest
	IDs     []blockfmt.BlockID
	Lengths []int64 // stored
}

func newBlob(blocks int) (*blob, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	// Not on the heap: an agent's blocks lie in files, and its garbage collector works on a heap without them.
	memory, err := syscall.Mmap(-1, 0, blocks*(190<<10), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	b := &blob{stored: memory[:0]}
	var builder blockfmt.IndexBuilder
	raw := make([]byte, blockfmt.BlockSize)
	for range blocks {
		_, _ = rand.Read(raw[:180<<10]) // never fails
		before := len(b.stored)
		b.stored = enc.EncodeAll(raw, b.stored)
		b.lengths = append(b.lengths, int64(len(b.stored)-before))
		builder.Append(blockfmt.IDOf(b.stored[before:]), b.lengths[len(b.lengths)-1], int64(len(raw)))
	}
	b.index, err = builder.Index(digest.FromBytes(b.stored))
	return b, err
}

func (b *blob) description() description {
	d := description{Blob: b.index.Blob(), Lengths: b.lengths}
	for i := range b.index.Len() {
		d.IDs = append(d.IDs, b.index.Ref(i).ID)
	}
	return d
}

// image returns the image of the blob that is described.
func (d description) image() (*stream.Image, error) {
	var builder blockfmt.IndexBuilder
	for i, id := range d.IDs {
		builder.Append(id, d.Lengths[i], blockfmt.BlockSize)
	}
	index, err := builder.Index(d.Blob)
	if err != nil {
		return nil, err
	}
	return stream.NewImage(digest.FromString("manifest of "+d.Blob.String()), 1, index)
}

// The blob is the store and the block stack of the process that serves.

func (b *blob) Block(_ context.Context, ref blockfmt.Ref) ([]byte, error) {
	return b.stored[ref.Offset : ref.Offset+ref.Length], nil
}

func (b *blob) Verified() bool        { return true }
func (b *blob) Has(blockfmt.Ref) bool { return true }
func (b *blob) Put(context.Context, blockfmt.Ref, []byte) error {
	return fmt.Errorf("put: %w", blockfmt.ErrUnsupported)
}
