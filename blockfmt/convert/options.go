package convert

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Options of a conversion. The zero value is usable.
type Options struct {
	// Profile lays out what it lists at the start of the blobs and becomes the startup record. Default: none.
	Profile blockfmt.Profile
	// Key signs the block image. Default: not signed; such an image is used only on the node that made it.
	Key ed25519.PrivateKey
	// CacheDir keeps converted layers for the next conversion, about as large as the compressed layers. Any number of
	// conversions may share it. Default: nothing is kept after Result.Close.
	CacheDir string
	// TempDir takes the uncompressed data of the layers in work. Default: CacheDir, or else the system's.
	TempDir string
	// Workers bounds the layers in work at a time and the processors that compress. Default: the number of processors.
	Workers int
	// MaxUncompressed bounds the uncompressed bytes of an image: of its layers, and of its files' sizes. A bigger one is
	// refused as ErrUnsupported. Default: 1 TiB.
	MaxUncompressed int64
	// MaxEntries bounds the files of one layer. Default: 4 Mi, about 1.2 GiB of memory.
	MaxEntries int
	// Progress is told about bytes that are through. It is called from several goroutines at once and must return quickly.
	// Default: nobody.
	Progress func(Progress)
	// Logger gets a line for each layer. Default: discards.
	Logger *slog.Logger
}

// maxLayerMetadata bounds the bytes of names, link targets and extended attributes of one layer.
const maxLayerMetadata = 1 << 30

func (o Options) withDefaults() Options {
	if o.Workers <= 0 {
		o.Workers = runtime.NumCPU()
	}
	if o.TempDir == "" {
		o.TempDir = o.CacheDir
	}
	if o.TempDir == "" {
		o.TempDir = os.TempDir()
	}
	if o.MaxUncompressed <= 0 {
		o.MaxUncompressed = 1 << 40
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 4 << 20
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Phase is a part of the work on a layer.
type Phase string

const (
	PhaseFetch  Phase = "fetch"  // compressed bytes of the source layer read
	PhaseEncode Phase = "encode" // uncompressed bytes of the blob compressed; the total is known at the end only
	PhasePush   Phase = "push"   // bytes of the block image's blobs pushed
)

// Progress says how far the work on a layer is.
type Progress struct {
	Layer       int // of the source, from 0; -1 for what belongs to the whole image
	Phase       Phase
	Done, Total int64 // bytes; Total is 0 while it is unknown
	Cached      bool  // nothing had to be done for the layer in this phase
}

// Stats says what a conversion did.
type Stats struct {
	Layers       []LayerStats
	Converted    int   // layers that were converted; the others were cached or occur twice
	SourceSize   int64 // compressed bytes of the source's layers
	RawSize      int64 // uncompressed bytes of the blobs: file data, without duplicates and holes
	StoredSize   int64 // bytes of the blobs
	Blocks       int
	MetadataSize int64 // stored bytes of the merged metadata image
	Files        int   // inodes of the image
	Duration     time.Duration
}

// LayerStats says what became of one source layer.
type LayerStats struct {
	DiffID        digest.Digest
	Cached        bool  // taken from the cache
	SourceSize    int64 // compressed bytes of the source layer
	RawSize       int64 // uncompressed bytes of the blob
	StoredSize    int64 // bytes of the blob
	Blocks        int
	StartupBlocks int
	Inodes        int
}

func (s Stats) String() string {
	return fmt.Sprintf("%d layers (%d converted), %d files, %d blocks, %.1f MiB of data in %.1f MiB, %.2f MiB of metadata, source %.1f MiB, %.1f s",
		len(s.Layers), s.Converted, s.Files, s.Blocks, mib(s.RawSize), mib(s.StoredSize), mib(s.MetadataSize), mib(s.SourceSize), s.Duration.Seconds())
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
