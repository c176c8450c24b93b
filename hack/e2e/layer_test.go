package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// fileLayer is a zstd layer in a file. It is compressed and hashed once, not whenever somebody asks: one of the torture image's
// has five gibibytes, and the race detector is slow.
type fileLayer struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

func newFileLayer(t *testing.T, l blocktest.TortureLayer) *fileLayer {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	must(t, err)
	stored, raw := sha256.New(), sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(f, stored), zstd.WithEncoderLevel(zstd.SpeedFastest))
	must(t, err)
	must(t, l.Write(io.MultiWriter(z, raw)))
	must(t, z.Close())
	info, err := f.Stat()
	must(t, err)
	must(t, f.Close())
	hash := func(sum []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum)} }
	return &fileLayer{path: f.Name(), digest: hash(stored.Sum(nil)), diffID: hash(raw.Sum(nil)), size: info.Size()}
}

func (l *fileLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *fileLayer) Size() (int64, error)                { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error) { return types.OCILayerZStd, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{z, closer(func() error { z.Close(); return f.Close() })}, nil
}

type closer func() error

func (c closer) Close() error { return c() }
