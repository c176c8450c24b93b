package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// The kernel asks up to four times for a page that cannot be read: it reads ahead, then reads the page, on the EROFS file and
// on the FUSE file below. A read that failed after a long wait is therefore answered with the same error when it is repeated
// at once, so that the reader gets its EIO after one bound and not after four.
const (
	longWait = time.Second            // a read that failed sooner may as well be tried again
	repeated = 500 * time.Millisecond // after the failure
)

// failures remembers the last read of a blob that failed after a long wait. Safe for concurrent use.
type failures struct {
	mu      sync.Mutex
	off, to int64 // bytes
	at      time.Time
	err     error
}

// again returns the error of a read that overlaps [off, off+n) and has just failed.
func (f *failures) again(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || off >= f.to || off+n <= f.off || time.Since(f.at) > repeated {
		return nil
	}
	return f.err
}

// note remembers a read that began at start and ended with err. One that was given up by its reader says nothing.
func (f *failures) note(ctx context.Context, off, n int64, start time.Time, err error) {
	if err == nil || time.Since(start) < longWait || errors.Is(context.Cause(ctx), context.Canceled) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	first, last := off/blockfmt.BlockSize, (off+n-1)/blockfmt.BlockSize // the kernel asks for other parts of the block too
	f.off, f.to, f.at, f.err = first*blockfmt.BlockSize, (last+1)*blockfmt.BlockSize, time.Now(), err
}
