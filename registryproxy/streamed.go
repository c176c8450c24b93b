package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	// jump is how many blocks a stream goes on before it is given up for a block that a client waits for elsewhere.
	jump = 16
	// streamAttempts bounds the requests in a row that bring nothing.
	streamAttempts = 3
)

// Streamed is the Source that reads registries: a blob is one GET, in the order of its bytes. A connection that fails is taken up
// again where it was, and a client that waits for a part far ahead of it gets that first.
func Streamed(up Upstream) Source { return streamed{up} }

type streamed struct{ up Upstream }

// Fetch implements Source.
func (s streamed) Fetch(ctx context.Context, f Fetch, sink Sink) ([]string, error) {
	r := &run{up: s.up, f: f, sink: sink}
	ways := slices.Clone(f.Ways)
	for failures := 0; len(ways) > 0; {
		first, end := r.next()
		if first == end {
			return r.blamed(), nil
		}
		n, err := r.stream(ctx, ways[0], first, end)
		if n > 0 {
			failures = 0
		}
		switch {
		case err == nil:
		case errors.Is(err, blockfmt.ErrDenied), errors.Is(err, blockfmt.ErrNotFound):
			if ways = ways[1:]; len(ways) == 0 {
				return r.blamed(), err
			}
		case errors.Is(err, blockfmt.ErrTransient) && ctx.Err() == nil:
			if failures++; failures >= streamAttempts {
				return r.blamed(), err
			}
		default:
			return r.blamed(), err
		}
	}
	return nil, fmt.Errorf("blob %s: nobody asked for it: %w", f.Digest, blockfmt.ErrNotFound)
}

// run is one Fetch.
type run struct {
	up   Upstream
	f    Fetch
	sink Sink
	from []string // who gave bytes
}

// next returns the run of blocks to ask for now: where a client waits, else the first that are missing.
func (r *run) next() (first, end int) {
	if wanted, ok := r.sink.Wanted(); ok {
		if first, end = r.sink.Gap(wanted); first < end {
			return r.tail(first), end
		}
	}
	return r.sink.Gap(0)
}

// tail begins earlier if little is missing before, so that a blob of a few blocks is one request.
func (r *run) tail(first int) int {
	if start, end := r.sink.Gap(0); start < first && first < end && first-start <= jump {
		return start
	}
	return first
}

// blamed returns those whose bytes must not be used again if they are wrong as a whole. Of several it is the mirrors:
// the registry itself is asked again alone.
func (r *run) blamed() []string {
	mirrors := slices.DeleteFunc(slices.Clone(r.from), func(from string) bool {
		return slices.ContainsFunc(r.f.Ways, func(w Blob) bool { return w.Host == from })
	})
	if len(mirrors) > 0 {
		return mirrors
	}
	return r.from
}

// stream asks one registry for the blocks from first to end and writes them as they come. It returns how many came.
func (r *run) stream(ctx context.Context, way Blob, first, end int) (n int, err error) {
	resp, err := r.ask(ctx, way, first, end)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	buf := make([]byte, blockfmt.BlockSize)
	for i := first; i < end; i++ {
		_, size := way.Block(i)
		if _, err := io.ReadFull(resp.Body, buf[:size]); err != nil {
			return n, early(err, resp, r.f)
		}
		if err := r.sink.Write(i, buf[:size]); err != nil {
			return n, err
		}
		n++
		if n%jump == 0 && r.elsewhere(i) {
			return n, nil
		}
	}
	return n, r.atEnd(resp, first, end)
}

// early gives an end before the time its kind. Whoever announced another length has another blob.
func early(err error, resp *Response, f Fetch) error {
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	return fmt.Errorf("blob %s: %s ends it early: %w", f.Digest, resp.From, blockfmt.ErrTransient)
}

// elsewhere says whether a client waits for a block that this stream, which has reached i, brings late or never.
func (r *run) elsewhere(i int) bool {
	wanted, ok := r.sink.Wanted()
	return ok && (wanted <= i || wanted > i+jump)
}

// atEnd reads the end of a body of unknown length: one that goes on is another blob.
func (r *run) atEnd(resp *Response, first, end int) error {
	if resp.Status != http.StatusOK || first > 0 || end < (Blob{Size: r.f.Size}).Blocks() {
		return nil
	}
	if n, _ := io.ReadFull(resp.Body, make([]byte, 1)); n > 0 { // the blob is here, whatever else happens
		return fmt.Errorf("blob %s: %s has more than %d bytes: %w", r.f.Digest, resp.From, r.f.Size, blockfmt.ErrCorrupt)
	}
	return nil
}

// ask asks for the blocks from first to end.
func (r *run) ask(ctx context.Context, way Blob, first, end int) (*Response, error) {
	off, _ := way.Block(first)
	last, n := way.Block(end - 1)
	return r.askBytes(ctx, way, off, last+n)
}

// askBytes sends the request and checks that the answer is what was asked for.
func (r *run) askBytes(ctx context.Context, way Blob, off, end int64) (*Response, error) {
	req := Request{Method: http.MethodGet, Host: way.Host, Repo: way.Repo, Kind: "blobs", Ref: way.Digest.String(),
		Authorization: way.Authorization, Own: way.Own, Avoid: r.f.Avoid}
	if off > 0 || end < way.Size {
		req.Range = fmt.Sprintf("bytes=%d-%d", off, end-1)
	}
	resp, err := r.up.Do(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.Status/100 == 2 && !slices.Contains(r.from, resp.From) {
		r.from = append(r.from, resp.From)
	}
	if err := checkBody(resp, req, off, end, way.Size); err != nil {
		_ = resp.Body.Close() // given up
		return nil, err
	}
	return resp, nil
}

// ReadRange asks one registry for n bytes of a blob from off on. Who gave wrong bytes is avoided.
func ReadRange(ctx context.Context, up Upstream, way Blob, avoid []string, off, n int64) (io.ReadCloser, error) {
	r := &run{up: up, f: Fetch{Digest: way.Digest, Size: way.Size, Avoid: avoid}}
	resp, err := r.askBytes(ctx, way, off, off+n)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// checkBody checks that the answer's body is bytes off to end of a blob of size bytes. A whole blob that comes instead is skipped to
// off if that is near.
func checkBody(resp *Response, req Request, off, end, size int64) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("blob %s: %s answers with %s: %w", req.Ref, resp.From, fmt.Sprintf(format, args...), blockfmt.ErrCorrupt)
	}
	switch {
	case resp.Status/100 == 4:
		return statusError(resp, req)
	case resp.Status == http.StatusOK && resp.Length >= 0 && resp.Length != size:
		return wrong("%d bytes, not %d", resp.Length, size)
	case resp.Status == http.StatusOK && off == 0:
		return nil
	case resp.Status == http.StatusOK && off <= jump*blockfmt.BlockSize:
		_, err := io.CopyN(io.Discard, resp.Body, off)
		if err == io.EOF {
			return wrong("fewer than %d bytes", off)
		}
		return err
	case resp.Status == http.StatusPartialContent && req.Range != "":
		if got := resp.Header.Get("Content-Range"); !isRange(got, off, end, size) {
			return wrong("range %.40q", got)
		}
		return nil
	}
	return fmt.Errorf("blob %s: %s answers %d to %q: %w", req.Ref, resp.From, resp.Status, req.Range, blockfmt.ErrUnsupported)
}

// isRange says whether a Content-Range is bytes off to end of size, which may be unknown to the registry.
func isRange(header string, off, end, size int64) bool {
	part, total, ok := strings.Cut(header, "/")
	return ok && part == fmt.Sprintf("bytes %d-%d", off, end-1) && (total == "*" || total == strconv.FormatInt(size, 10))
}

// statusError gives a refusal its kind.
func statusError(resp *Response, req Request) error {
	kind := blockfmt.ErrUnsupported
	switch resp.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = blockfmt.ErrDenied
	case http.StatusNotFound, http.StatusGone:
		kind = blockfmt.ErrNotFound
	case http.StatusRequestedRangeNotSatisfiable:
		kind = blockfmt.ErrCorrupt
	}
	return fmt.Errorf("%s %s of %s/%s: %s answers %d: %w", req.Kind, req.Ref, req.Host, req.Repo, resp.From, resp.Status, kind)
}
