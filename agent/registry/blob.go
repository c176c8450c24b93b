package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxSkip bounds the bytes that are read in vain when a registry answers a request for a range with the whole blob.
const maxSkip = 4 << 20

// goodProgress is how many bytes a connection must bring before its end does not count as a failed attempt.
const goodProgress = 64 << 10

// Blob returns a whole blob of at most limit bytes, verified against desc's digest and size.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("blob %s of %s: %d bytes, at most %d: %w", desc.Digest, r, desc.Size, limit, blockfmt.ErrCorrupt)
	}
	var buf bytes.Buffer
	if desc.Size > 0 {
		buf.Grow(int(min(desc.Size, 1<<20))) // what a descriptor claims is not believed in advance
	}
	if err := r.WriteBlob(ctx, desc, &buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// WriteBlob writes a whole blob to w. It checks desc's size while writing and the digest at the end: after an error, what
// w got must be thrown away. A connection that fails midway is taken up again where it was.
func (r *Repository) WriteBlob(ctx context.Context, desc ocispec.Descriptor, w io.Writer) error {
	if err := validate(desc.Digest); err != nil {
		return err
	}
	if desc.Size < 0 {
		return fmt.Errorf("blob %s of %d bytes: %w", desc.Digest, desc.Size, blockfmt.ErrCorrupt)
	}
	verifier := desc.Digest.Verifier()
	out := &blobWriter{w: io.MultiWriter(w, verifier)}
	for attempt := 1; out.n < desc.Size; attempt++ {
		before := out.n
		err := r.copyFrom(ctx, desc, out)
		if out.n-before >= goodProgress {
			attempt = 1
		}
		switch {
		case out.err != nil:
			return fmt.Errorf("blob %s: %w", desc.Digest, out.err)
		case err == nil:
		case !errors.Is(err, blockfmt.ErrTransient) || out.n == before || attempt >= r.client.cfg.Attempts || ctx.Err() != nil:
			return err
		}
	}
	if !verifier.Verified() {
		return fmt.Errorf("blob %s of %s: got other bytes: %w", desc.Digest, r, blockfmt.ErrCorrupt)
	}
	return nil
}

// blobWriter counts and tells errors of the writer from those of the registry.
type blobWriter struct {
	w   io.Writer
	n   int64
	err error
}

func (b *blobWriter) Write(p []byte) (int, error) {
	n, err := b.w.Write(p)
	b.n, b.err = b.n+int64(n), err
	return n, err
}

// copyFrom writes the blob from out.n to its end.
func (r *Repository) copyFrom(ctx context.Context, desc ocispec.Descriptor, out *blobWriter) error {
	var body io.ReadCloser
	var err error
	if out.n == 0 {
		body, err = r.open(ctx, desc)
	} else {
		body, err = r.Range(ctx, desc.Digest, out.n, desc.Size-out.n)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.CopyN(out, body, desc.Size-out.n)
	if err == io.EOF {
		err = fmt.Errorf("blob %s of %s: ends after %d of %d bytes: %w", desc.Digest, r, out.n, desc.Size, blockfmt.ErrCorrupt)
	}
	if err == nil {
		err = atEnd(body)
	}
	return err
}

// atEnd reads the end of a body: a longer one is ErrCorrupt. Without it a chunked body's connection is not used again.
func atEnd(body io.Reader) error {
	n, err := io.ReadFull(body, make([]byte, 1))
	if n > 0 {
		return fmt.Errorf("blob is longer than it should be: %w", blockfmt.ErrCorrupt)
	}
	if err == io.EOF {
		err = nil
	}
	return err
}

// open asks for a whole blob.
func (r *Repository) open(ctx context.Context, desc ocispec.Descriptor) (body io.ReadCloser, err error) {
	err = r.stream(ctx, request{method: http.MethodGet, url: r.url("blobs", desc.Digest.String()), blob: desc.Digest.String()}, func(resp *http.Response) error {
		if resp.ContentLength >= 0 && resp.ContentLength != desc.Size {
			return fmt.Errorf("blob %s of %s: %d bytes, want %d: %w", desc.Digest, r, resp.ContentLength, desc.Size, blockfmt.ErrCorrupt)
		}
		body = resp.Body
		return errKeep
	})
	return body, err
}

// Range asks for the n bytes of a blob at off and returns them as they arrive: exactly n bytes, or an error of Read that
// wraps ErrTransient. They are not verified. The time until the answer is bounded by Config.Timeout, the time between its bytes by
// Config.StallTimeout; ctx ends both. The caller must close it.
func (r *Repository) Range(ctx context.Context, blob digest.Digest, off, n int64) (body io.ReadCloser, err error) {
	if err := validate(blob); err != nil {
		return nil, err
	}
	if off < 0 || n <= 0 {
		return nil, fmt.Errorf("%d bytes at %d of %s: %w", n, off, blob, blockfmt.ErrCorrupt)
	}
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}}
	err = r.stream(ctx, request{method: http.MethodGet, url: r.url("blobs", blob.String()), header: header, blob: blob.String()}, func(resp *http.Response) error {
		if err := cutRange(resp, off, n); err != nil {
			return fmt.Errorf("bytes %d-%d of %s of %s: %w", off, off+n-1, blob, r, err)
		}
		body = &exactBody{ReadCloser: resp.Body, left: n, chunked: resp.ContentLength < 0 && resp.StatusCode == http.StatusPartialContent}
		return errKeep
	})
	return body, err
}

// cutRange checks that the answer to a request for n bytes at off is what was asked for, and skips to off if it is the
// whole blob and off is near.
func cutRange(resp *http.Response, off, n int64) error {
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		first, last, _, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err == nil && (first != off || last != off+n-1) {
			err = fmt.Errorf("got bytes %d-%d: %w", first, last, blockfmt.ErrCorrupt)
		}
		return err
	case resp.StatusCode == http.StatusOK && off <= maxSkip:
		_, err := io.CopyN(io.Discard, resp.Body, off)
		if err == io.EOF {
			err = fmt.Errorf("blob is shorter: %w", blockfmt.ErrCorrupt)
		}
		return err
	}
	return fmt.Errorf("the registry does not serve ranges (status %d): %w", resp.StatusCode, blockfmt.ErrUnsupported)
}

// exactBody ends after left bytes and makes an earlier end an error.
type exactBody struct {
	io.ReadCloser
	left    int64
	chunked bool
}

// Close leaves the connection of a body that was read to its end fit for reuse.
func (b *exactBody) Close() error {
	if b.left == 0 && b.chunked {
		_ = atEnd(b.ReadCloser) // the bytes that were asked for are there
	}
	return b.ReadCloser.Close()
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = fmt.Errorf("body ends %d bytes early: %w: %w", b.left, io.ErrUnexpectedEOF, blockfmt.ErrTransient)
	}
	return n, err
}

// stream is call for a body that outlives it: Config.Timeout bounds the call only.
func (r *Repository) stream(ctx context.Context, req request, consume func(*http.Response) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(r.client.cfg.Timeout, func() {
		cancel(fmt.Errorf("no answer from %s within %v: %w", r.host, r.client.cfg.Timeout, blockfmt.ErrTransient))
	})
	defer timer.Stop()
	err := r.call(ctx, req, func(resp *http.Response) error {
		err := consume(resp)
		if b, ok := resp.Body.(*watchedBody); ok && errors.Is(err, errKeep) {
			b.timer.Stop() // the time until the first Read is the reader's
			b.outer = cancel
		}
		return err
	})
	if err != nil {
		cancel(nil)
	}
	return err
}
