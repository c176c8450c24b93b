package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	// reopens bounds how often a blob that turned out to be wrong is opened again for a client that got none of it.
	reopens = 3
	// filePart is how much of a file is sent between two looks at the clock: in the kernel.
	filePart = 8 << 20
	// copyPart is how much of a blob that still arrives is read at once. Each slow client holds one: 200 with 128 KiB cost the process
	// 20 MiB more.
	copyPart = 64 << 10
)

// blob answers end-2.
func (p *Proxy) blob(w http.ResponseWriter, r *http.Request, t target) error {
	d := digest.Digest(t.ref)
	m, err := p.access.stat(r.Context(), t, d)
	if err != nil {
		return err
	}
	b := Blob{Digest: d, Size: m.Size, Host: t.host, Repo: t.repo, Authorization: t.authorization}
	if b.Size == 0 && d.Algorithm().FromBytes(nil) != d {
		return fmt.Errorf("blob %s: %s says that it is empty: %w", d, t.host, blockfmt.ErrCorrupt)
	}
	h, etag := w.Header(), `"`+d.String()+`"`
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", etag)
	h.Set("Accept-Ranges", "bytes")
	if matches(r.Header.Get("If-None-Match"), etag, true) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	part, partial, err := rangeOf(r, b.Size, etag)
	if err != nil {
		a := refuse(http.StatusRequestedRangeNotSatisfiable, codeRangeInvalid, "the blob has %d bytes", b.Size)
		a.header = http.Header{"Content-Range": {fmt.Sprintf("bytes */%d", b.Size)}}
		return a
	}
	s := &sender{w: w, control: http.NewResponseController(w), timeout: p.cfg.WriteTimeout, part: part, header: func() { blobHeader(w, part, partial, b.Size) }}
	if r.Method == http.MethodHead || part.n == 0 {
		s.header()
		return nil
	}
	if err = p.send(r.Context(), s, b); errors.Is(err, blockfmt.ErrDenied) {
		if _, denied := p.access.ask(r.Context(), t, d); denied != nil { // the registry's own words, for the client to log in again
			return denied
		}
	}
	return err
}

// rangeOf returns the part that a request asks for.
func rangeOf(r *http.Request, size int64, etag string) (span, bool, error) {
	header := r.Header.Get("Range")
	if r.Method != http.MethodGet || header == "" {
		return span{0, size}, false, nil
	}
	if condition := r.Header.Get("If-Range"); condition != "" && !matches(condition, etag, false) {
		return span{0, size}, false, nil
	}
	return parseRange(header, size)
}

func blobHeader(w http.ResponseWriter, part span, partial bool, size int64) {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(part.n, 10))
	if !partial {
		w.WriteHeader(http.StatusOK)
		return
	}
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.off, part.off+part.n-1, size))
	w.WriteHeader(http.StatusPartialContent)
}

// send gives a client a part of a blob. If that fails before the first byte, the error is returned; after it the connection is
// aborted, so that the client cannot take what it got for the whole.
func (p *Proxy) send(ctx context.Context, s *sender, b Blob) error {
	var err error
	for range reopens {
		err = p.sendOpened(ctx, s, b)
		if err == nil || s.begun || !errors.Is(err, blockfmt.ErrCorrupt) {
			break
		}
	}
	if err != nil && !s.begun && isLocal(err) && ctx.Err() == nil {
		p.cfg.Log.Warn("blob passes the disk by", "blob", b.Digest, "error", err)
		err = p.sendDirect(ctx, s, b)
		p.counters.DirectBytes.Add(s.sent)
	}
	p.counters.BlobBytes.Add(s.sent)
	if err != nil && s.begun {
		p.counters.Aborted.Add(1)
		if ctx.Err() == nil && !s.gone {
			p.cfg.Log.Warn("blob cannot be given whole, the connection is closed", "blob", b.Digest, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	return err
}

func (p *Proxy) sendOpened(ctx context.Context, s *sender, b Blob) error {
	content, err := p.cfg.Blobs.Open(ctx, b)
	if err != nil {
		return err
	}
	defer content.Close()
	var file *os.File
	if f, ok := content.(FileContent); ok {
		file = f.File()
		if _, err := file.Seek(s.part.off, io.SeekStart); err != nil {
			return err
		}
	}
	for s.sent < s.part.n {
		off := s.part.off + s.sent
		n, err := content.Ready(ctx, off)
		if err != nil {
			return err
		}
		if n = min(n, s.part.n-s.sent); file != nil {
			err = s.file(file, min(n, filePart))
		} else {
			err = s.copy(io.NewSectionReader(content, off, n), n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sender writes the body of one answer.
type sender struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	part    span
	header  func()

	begun bool
	sent  int64
	gone  bool // the client took nothing more
}

// begin writes the header once, and gives the client time for the next part.
func (s *sender) begin() {
	_ = s.control.SetWriteDeadline(time.Now().Add(s.timeout)) // a writer without deadlines is a test's
	if !s.begun {
		s.begun = true
		s.header()
	}
}

// file sends n bytes of a file from its position on, without copying them to this process.
func (s *sender) file(f *os.File, n int64) error {
	s.begin()
	sent, err := io.CopyN(s.w, f, n)
	s.sent += sent
	s.gone = err != nil
	return err
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyPart); return &b }}

// copy sends n bytes of a reader.
func (s *sender) copy(r io.Reader, n int64) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for n > 0 {
		m, err := io.ReadFull(r, (*buf)[:min(n, copyPart)])
		if err != nil {
			return fmt.Errorf("read %d bytes: %w", n, err)
		}
		if err := s.write((*buf)[:m]); err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func (s *sender) write(p []byte) error {
	s.begin()
	n, err := s.w.Write(p)
	s.sent += int64(n)
	s.gone = err != nil
	return err
}
