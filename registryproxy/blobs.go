package registryproxy

import (
	"context"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Blob is a blob as a client asks for it: it says what, how large, and where it may be read.
type Blob struct {
	Digest digest.Digest
	Size   int64 // as the registry says
	Host   string
	Repo   string
	// Authorization is the client's, "" if it sent none. Host has accepted it.
	Authorization string
	// Own says that this node itself asks, with its own credentials, which Host may refuse.
	Own bool
}

// Blocks returns the number of blocks of BlockSize bytes, the last of which may be shorter.
func (b Blob) Blocks() int { return int((b.Size + blockfmt.BlockSize - 1) / blockfmt.BlockSize) }

// Block returns where a block lies.
func (b Blob) Block(i int) (off, n int64) {
	off = int64(i) * blockfmt.BlockSize
	return off, min(blockfmt.BlockSize, b.Size-off)
}

// Blobs gives blobs to clients who may have them. Downloads is one.
type Blobs interface {
	// Open begins to bring the blob here, if it is not on its way. It does not wait for it. Errors that wrap none of blockfmt's
	// kinds are faults of this machine.
	Open(ctx context.Context, b Blob) (Content, error)
}

// Content is the bytes of a blob, which may still be arriving. It is for one reader; close it when done.
type Content interface {
	// Ready waits until the byte at off may be read and returns how many bytes from there on may be. The last block of
	// the blob may be read only once the whole blob's digest was checked. An error says that no more will come.
	Ready(ctx context.Context, off int64) (n int64, err error)
	// ReadAt reads what Ready said may be read.
	io.ReaderAt
	io.Closer
}

// A FileContent is what a Content may be as well: a file of its own that holds all of the blob.
type FileContent interface {
	File() *os.File
}

// A Source brings blobs onto this node: a registry's, other nodes', or one that falls back to another.
type Source interface {
	// Fetch gives sink the blocks that it misses, in any order, until there is none or no more can be had. It returns
	// who gave the bytes: if they turn out to be wrong, Fetch is called again with those in Avoid.
	Fetch(ctx context.Context, f Fetch, sink Sink) (from []string, err error)
}

// Fetch says what a Source is to bring. Digest and Size are those of every way.
type Fetch struct {
	Digest digest.Digest
	Size   int64
	Ways   []Blob   // how clients asked for it: each with credentials that its registry has accepted; at least one
	Avoid  []string // who gave wrong bytes
}

// Sink takes the blocks of a blob. Safe for concurrent use.
type Sink interface {
	// Gap returns the first run of blocks at or after from that are not here: first == end if there is none.
	Gap(from int) (first, end int)
	// Write takes the bytes of a block. One that is here already is ignored. An error is this machine's, and final.
	Write(block int, data []byte) error
	// Wanted returns a missing block for which a client waits, the first one to do so; ok is false if nobody does.
	Wanted() (block int, ok bool)
	Arrived
}

// Arrived is what is here of a blob, until Fetch has returned and the blob is kept or thrown away. Safe for concurrent use.
type Arrived interface {
	Has(block int) bool
	// ReadAt reads blocks that are here.
	io.ReaderAt
}

// Store keeps blobs on disk. Safe for concurrent use.
type Store interface {
	// Open opens a blob that is kept, or returns blockfmt.ErrNotFound.
	Open(d digest.Digest) (*os.File, error)
	// Create makes room for a blob that is on its way. Its space is free again after Close, unless Keep succeeds.
	Create(d digest.Digest, size int64) (File, error)
	// Keep makes the blob in a File of Create survive a loss of power, under its digest, which the caller has checked. The File
	// stays open.
	Keep(f File) error
}

// File holds the bytes of a blob that is on its way.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}
