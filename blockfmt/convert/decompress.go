package convert

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/blockfmt"
)

// Media types of layers, Docker's beside those of image-spec. The compression is recognised by its magic number, as
// containerd does it, because media types of layers are wrong often enough.
var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer:                         true,
	ocispec.MediaTypeImageLayerGzip:                     true,
	ocispec.MediaTypeImageLayerZstd:                     true,
	"application/vnd.docker.image.rootfs.diff.tar":      true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
}

// maxZstdWindow bounds in bytes the memory of a zstd layer's decompressor: what `zstd --long` needs.
const maxZstdWindow = 128 << 20

// decompress returns the uncompressed bytes of a layer. Errors of the format wrap ErrCorrupt.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 8}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", asCorrupt(err))
		}
		return corruptReader{z, "gzip", z.Close}, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]>>4 == 5 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", asCorrupt(err))
		}
		return corruptReader{z, "zstd", func() error { z.Close(); return nil }}, nil
	}
	return io.NopCloser(br), nil
}

// corruptReader gives a decompressor's errors their kind.
type corruptReader struct {
	io.Reader
	name  string
	close func() error
}

func (r corruptReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", r.name, asCorrupt(err))
	}
	return n, err
}

func (r corruptReader) Close() error { return r.close() }

// verifier passes a blob through and reports ErrCorrupt at its end unless size and digest are the descriptor's.
// It never passes on more bytes than the descriptor says.
type verifier struct {
	r    io.Reader
	want ocispec.Descriptor
	sum  hash.Hash
	left int64
}

// newVerifier returns a verifier of r. Without sum it leaves the digest alone: layers are verified by their diffID, which
// the config's digest vouches for, and hashing their compressed bytes too would cost 5 % of a conversion for nothing.
func newVerifier(r io.Reader, want ocispec.Descriptor, sum hash.Hash) *verifier {
	return &verifier{r: r, want: want, sum: sum, left: want.Size}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p[:min(int64(len(p)), v.left+1)])
	if int64(n) > v.left {
		return 0, fmt.Errorf("%s is longer than %d bytes: %w", v.want.Digest, v.want.Size, blockfmt.ErrCorrupt)
	}
	v.left -= int64(n)
	if v.sum != nil {
		v.sum.Write(p[:n])
	}
	if err == io.EOF {
		err = v.end()
	}
	return n, err
}

func (v *verifier) end() error {
	if v.left > 0 {
		return fmt.Errorf("%s ends %d bytes early: %w", v.want.Digest, v.left, blockfmt.ErrCorrupt)
	}
	if v.sum == nil {
		return io.EOF
	}
	if got := digest.NewDigest(digest.SHA256, v.sum); got != v.want.Digest {
		return fmt.Errorf("blob hashes to %s, want %s: %w", got, v.want.Digest, blockfmt.ErrCorrupt)
	}
	return io.EOF
}

// counter tells seen about the bytes that pass.
type counter struct {
	io.Reader
	seen func(total int64)
	done int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.done += int64(n)
	c.seen(c.done)
	return n, err
}

// budget bounds the uncompressed bytes of a conversion: what its layers expand to, and what their files claim to hold.
type budget struct {
	max  int64
	take func(n int64) (total int64)
}

func (b budget) use(n int64) error {
	if n < 0 || n > b.max || b.take(n) > b.max {
		return fmt.Errorf("image expands to more than %d bytes: %w", b.max, blockfmt.ErrUnsupported)
	}
	return nil
}

// ahead runs consume on what r gives, with reading, hashing and budgeting in a goroutine of its own, a few buffers ahead,
// and returns the digest of everything in r, the part that consume left over included.
func ahead(ctx context.Context, r io.Reader, b budget, consume func(io.Reader) error) (digest.Digest, error) {
	const size, count = 256 << 10, 8
	g, ctx := errgroup.WithContext(ctx)
	full, free := make(chan []byte, count), make(chan []byte, count)
	for range count {
		free <- make([]byte, size)
	}
	sum := digest.SHA256.Hash()
	g.Go(func() error {
		for {
			buf, err := receive(ctx, free)
			if err != nil {
				return err
			}
			n, err := io.ReadFull(r, buf[:size])
			sum.Write(buf[:n])
			if over := b.use(int64(n)); over != nil {
				return over
			}
			if n > 0 {
				full <- buf[:n]
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				close(full) // only here: after an error the consumer must not take this for the end
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	g.Go(func() error {
		in := &chanReader{ctx: ctx, full: full, free: free}
		if err := consume(in); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, in)
		return err
	})
	err := g.Wait()
	return digest.NewDigest(digest.SHA256, sum), err
}

func receive(ctx context.Context, from <-chan []byte) ([]byte, error) {
	select {
	case buf := <-from:
		return buf, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// chanReader reads the buffers from full and gives them back through free.
type chanReader struct {
	ctx        context.Context
	full, free chan []byte
	buf, rest  []byte
}

func (c *chanReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.buf != nil {
			c.free <- c.buf
			c.buf = nil
		}
		buf, err := receive(c.ctx, c.full)
		if err != nil {
			return 0, err
		}
		if buf == nil {
			return 0, io.EOF
		}
		c.buf, c.rest = buf, buf
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
