package convert

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// metadataFrame is how many bytes of a metadata image go into one zstd frame.
const metadataFrame = 4 << 20

// writeMetadata writes a tree as a compressed EROFS image to a new file and returns its descriptor.
func (e *encoder) writeMetadata(path string, t *metadata.Tree) (ocispec.Descriptor, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer file.Close()
	raw, stored := digest.SHA256.Hash(), digest.SHA256.Hash()
	frames := &frameWriter{encoder: e.zstd, w: io.MultiWriter(file, stored)}
	if _, err := t.WriteTo(io.MultiWriter(raw, frames)); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("metadata image: %w", err)
	}
	if err := frames.flush(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("metadata image: %w", err)
	}
	if err := file.Sync(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("metadata image: %w", err)
	}
	return ocispec.Descriptor{
		MediaType: blockfmt.MediaTypeEROFSZstd, Digest: digest.NewDigest(digest.SHA256, stored), Size: frames.written,
		Annotations: map[string]string{blockfmt.AnnotationUncompressedDigest: digest.NewDigest(digest.SHA256, raw).String()},
	}, file.Close()
}

// frameWriter compresses what is written to it in frames of fixed size, so that the output does not depend on how it was
// written.
type frameWriter struct {
	encoder    *zstd.Encoder
	w          io.Writer
	buf, frame []byte
	written    int64
}

func (f *frameWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), metadataFrame-len(f.buf))
		f.buf, rest = append(f.buf, rest[:n]...), rest[n:]
		if len(f.buf) == metadataFrame {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

func (f *frameWriter) flush() error {
	if len(f.buf) == 0 {
		return nil
	}
	f.frame = f.encoder.EncodeAll(f.buf, f.frame[:0])
	f.buf = f.buf[:0]
	n, err := f.w.Write(f.frame)
	f.written += int64(n)
	return err
}

// readMetadata reads a compressed metadata image back.
func readMetadata(path string) (*metadata.Tree, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	z, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(metadataFrame))
	if err != nil {
		return nil, fmt.Errorf("metadata image: %w", err)
	}
	defer z.Close()
	raw, err := io.ReadAll(io.LimitReader(z, blockfmt.MaxMetadataSize))
	if err != nil {
		return nil, fmt.Errorf("metadata image: %w", asCorrupt(err))
	}
	return metadata.Read(bytes.NewReader(raw), int64(len(raw)))
}
