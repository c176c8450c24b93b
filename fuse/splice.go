package fuse

import (
	"errors"
	"fmt"
	"io"
	"os"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"

	"github.com/xylem-project/xylem/blockfmt"
)

var errNoPipe = errors.New("no pipe large enough")

// piped is data that waits in a pipe. go-fuse's own result for a descriptor splices while it replies and so sends a short
// reply when the local file cannot be read to the end, which EROFS completes with zeros. Here everything is in the pipe
// before the reply begins.
type piped struct {
	pair *splice.Pair
	file *os.File // for Bytes
	off  int64
	n    int
}

func loadPipe(file *os.File, off int64, n int) (gofuse.ReadResult, error) {
	pair, err := splice.Get()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPipe, err)
	}
	p := &piped{pair: pair, file: file, off: off, n: n}
	// One page more than n if off is not aligned.
	if err := pair.Grow(n + 2*blockfmt.PageSize); err != nil {
		p.Done()
		return nil, fmt.Errorf("%w: %w", errNoPipe, err)
	}
	if err := p.fill(); err != nil {
		p.Done()
		return nil, err
	}
	return p, nil
}

func (p *piped) fill() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	for done := 0; done < p.n; {
		var n int
		var spliceErr error
		// Control keeps the descriptor from being closed, and its number from being used for something else.
		err := conn.Control(func(fd uintptr) { n, spliceErr = p.pair.LoadFromAt(fd, p.n-done, p.off+int64(done)) })
		if err == nil {
			err = spliceErr
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("local file %s has %d of %d bytes at %d: %w", p.file.Name(), done, p.n, p.off, err)
		}
		done += n
	}
	return nil
}

func (p *piped) Size() int { return p.n }

// Stateful is how go-fuse recognises a result that it can splice.
func (p *piped) Stateful() (fd uintptr, sz int) { return p.pair.ReadFd(), p.n }

// Bytes is go-fuse's way out if splicing fails; the pipe may be half empty then, so it starts from the file.
func (p *piped) Bytes(buf []byte) ([]byte, gofuse.Status) {
	if cap(buf) < p.n {
		buf = make([]byte, p.n)
	}
	buf = buf[:p.n]
	if n, _ := p.file.ReadAt(buf, p.off); n < p.n {
		return nil, gofuse.EIO
	}
	return buf, gofuse.OK
}

func (p *piped) Done() { splice.Done(p.pair) }
