package convert

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/blockfmt"
)

// encoder compresses blocks on a bounded number of processors, for all layers of a conversion. Safe for concurrent use.
type encoder struct {
	zstd    *zstd.Encoder
	slots   chan struct{} // one per worker
	buffers sync.Pool     // of *[]byte with room for a raw block
}

// level: see docs/decisions/convert-speed.md for what the others cost.
const level = zstd.SpeedFastest

func newEncoder(workers int) (*encoder, error) {
	// Every option that shapes the output is set here, so that defaults of the library can change without changing blobs.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(blockfmt.BlockSize), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	e := &encoder{zstd: z, slots: make(chan struct{}, workers)}
	e.buffers.New = func() any { b := make([]byte, blockfmt.BlockSize); return &b }
	return e, nil
}

// encoded says what encode wrote. There is no digest of the uncompressed bytes: the index vouches for every block of them, and
// computing one would take a sixth of a conversion (docs/decisions/convert-speed.md).
type encoded struct {
	Digest  digest.Digest // of the stored bytes
	Size    int64         // stored bytes
	RawSize int64
	builder blockfmt.IndexBuilder
}

// block on its way through encode. done is closed when stored and id are set.
type block struct {
	raw, stored *[]byte
	length      int
	id          blockfmt.BlockID
	done        chan struct{}
}

// encode cuts r into blocks, compresses each as one frame and writes them to w in order.
func (e *encoder) encode(ctx context.Context, r io.Reader, w io.Writer, progress func(raw int64)) (*encoded, error) {
	out := &encoded{}
	order := make(chan *block, cap(e.slots)+1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(order)
		return e.read(ctx, g, r, order, out)
	})
	g.Go(func() error { return e.write(ctx, w, order, out, progress) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

func (e *encoder) read(ctx context.Context, g *errgroup.Group, r io.Reader, order chan<- *block, out *encoded) error {
	for {
		b := &block{raw: e.buffers.Get().(*[]byte), stored: e.buffers.Get().(*[]byte), done: make(chan struct{})}
		n, err := io.ReadFull(r, *b.raw)
		if n > 0 {
			b.length = n
			out.RawSize += int64(n)
			select {
			case order <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
			g.Go(func() error { return e.compress(ctx, b) })
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return nil
		default:
			return err
		}
	}
}

func (e *encoder) compress(ctx context.Context, b *block) error {
	select {
	case e.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.slots }()
	*b.stored = e.zstd.EncodeAll((*b.raw)[:b.length], (*b.stored)[:0])
	b.id = blockfmt.IDOf(*b.stored)
	close(b.done)
	return nil
}

func (e *encoder) write(ctx context.Context, w io.Writer, order <-chan *block, out *encoded, progress func(int64)) error {
	sum := sha256.New()
	for b := range order {
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		sum.Write(*b.stored)
		if _, err := w.Write(*b.stored); err != nil {
			return fmt.Errorf("blob: %w", err)
		}
		out.builder.Append(b.id, int64(len(*b.stored)), int64(b.length))
		out.Size += int64(len(*b.stored))
		progress(int64(b.length))
		*b.stored = (*b.stored)[:cap(*b.stored)]
		e.release(b)
	}
	out.Digest = digest.NewDigest(digest.SHA256, sum)
	return ctx.Err()
}

// release gives a block's buffers back, unless the frame outgrew its own.
func (e *encoder) release(b *block) {
	e.buffers.Put(b.raw)
	if len(*b.stored) >= blockfmt.BlockSize {
		*b.stored = (*b.stored)[:blockfmt.BlockSize]
		e.buffers.Put(b.stored)
	}
}
