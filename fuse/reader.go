package fuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/xylem-project/xylem/blockfmt"
)

// Blob is the uncompressed data of one blob, in a local file that is filled on demand.
type Blob interface {
	// Size in bytes; constant.
	Size() int64
	// Fill makes the bytes [off, off+n) valid in File. Safe for concurrent use. It should return when ctx ends; a reader
	// does not wait longer than that in any case. Errors wrap one of blockfmt's kinds.
	Fill(ctx context.Context, off, n int64) error
	// File is the local file; data is spliced from it. Open for as long as the blob is served.
	File() *os.File
}

// Caller is the one whom a request is answered to.
type Caller struct {
	Ctx    context.Context // ends no later than the Reader; the request fails then. nil: the Reader's
	Cancel <-chan struct{} // closed when the kernel interrupts the request, or when the connection ends
	Thread uint32          // thread id, 0 if the kernel does not say
}

// Reader answers READ requests from blobs, in bounded time whatever they do. Close it after the last request.
type Reader struct {
	timeout  time.Duration
	failures *failureLog
	ctx      context.Context // ends when the Reader is closed
	stop     context.CancelFunc
	fills    sync.WaitGroup // Fill calls, also those that nobody waits for any more
}

// NewReader returns a Reader with the ReadTimeout, LogInterval and Log of cfg.
func NewReader(cfg Config) *Reader {
	cfg = cfg.withDefaults()
	r := &Reader{timeout: cfg.ReadTimeout, failures: newFailureLog(cfg.Log, cfg.LogInterval)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Stop makes all requests under way fail, and those that follow.
func (r *Reader) Stop() { r.stop() }

// Close stops, and waits for calls of Fill for at most the ReadTimeout. Its error says that some have not returned.
func (r *Reader) Close() error {
	r.stop()
	done := make(chan struct{})
	go func() { // ends with the last Fill, which is what Close reports if it has to give up
		r.fills.Wait()
		close(done)
	}()
	timer := time.NewTimer(r.timeout)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return fmt.Errorf("fuse: blobs have not given up filling after %v", r.timeout)
	}
}

// Read returns the bytes [off, off+n) of b, cut at its end, ready to be spliced. Never fewer: the kernel takes what is
// missing for zeros.
func (r *Reader) Read(c Caller, name string, b Blob, off int64, n int) (gofuse.ReadResult, gofuse.Status) {
	n = clamp(b.Size(), off, n)
	if n == 0 {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	if status := r.fill(c, name, b, off, n); status != gofuse.OK {
		return nil, status
	}
	result, err := load(b.File(), off, n)
	if err != nil {
		r.failures.failed(name, off, n, err)
		return nil, gofuse.EIO
	}
	return result, gofuse.OK
}

// ReadAt reads exactly len(p) bytes of b into p.
func (r *Reader) ReadAt(c Caller, name string, b Blob, p []byte, off int64) gofuse.Status {
	if status := r.fill(c, name, b, off, len(p)); status != gofuse.OK {
		return status
	}
	if n, err := b.File().ReadAt(p, off); n < len(p) {
		r.failures.failed(name, off, len(p), err)
		return gofuse.EIO
	}
	return gofuse.OK
}

func clamp(size, off int64, n int) int {
	if off < 0 || off >= size || n < 0 {
		return 0
	}
	return int(min(int64(n), size-off))
}

var errKilled = errors.New("reader was killed")

// fill makes the bytes valid and logs why if it cannot.
func (r *Reader) fill(c Caller, name string, b Blob, off int64, n int) gofuse.Status {
	parent := c.Ctx
	if parent == nil {
		parent = r.ctx
	}
	ctx, cancel := context.WithTimeout(parent, r.timeout)
	defer cancel()
	done := make(chan error, 1)
	r.fills.Go(func() { done <- b.Fill(ctx, off, int64(n)) })
	err := r.await(ctx, c, done)
	if errors.Is(err, errKilled) {
		return gofuse.EINTR
	}
	if err != nil && parent.Err() == nil { // not while closing
		r.failures.failed(name, off, n, err)
	}
	if err != nil {
		return gofuse.EIO
	}
	return gofuse.OK
}

// await waits for the result of a Fill, the end of ctx, or the death of the caller.
//
// The kernel interrupts a request on any signal, but a request that then fails is a SIGBUS or an EIO for a reader that
// only had, say, a timer. So an interrupt is taken as a reason to see whether the reader is being killed.
func (r *Reader) await(ctx context.Context, c Caller, done <-chan error) error {
	cancel := c.Cancel
	var again <-chan time.Time
	for {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return fmt.Errorf("no data after %v: %w: %w", r.timeout, context.Cause(ctx), blockfmt.ErrTransient)
		case <-cancel:
			cancel = nil
			ticker := time.NewTicker(100 * time.Millisecond)
			defer ticker.Stop()
			again = ticker.C
		case <-again:
		}
		if beingKilled(c.Thread) {
			return errKilled
		}
	}
}

// load moves the bytes of file into a pipe, from which the kernel takes them without a copy through this process.
// Without a pipe of that size it reads them.
func load(file *os.File, off int64, n int) (gofuse.ReadResult, error) {
	if result, err := loadPipe(file, off, n); !errors.Is(err, errNoPipe) {
		return result, err
	}
	p := make([]byte, n)
	if got, err := file.ReadAt(p, off); got < n {
		return nil, fmt.Errorf("local file has %d of %d bytes at %d: %w", got, n, off, noEOF(err))
	}
	return gofuse.ReadResultData(p), nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
