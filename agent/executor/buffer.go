package executor

import (
	"errors"
	"io"
	"sync"
)

// errTooLarge says that more came than may be kept.
var errTooLarge = errors.New("too large")

// buffer is a payload in memory that is used again. Whoever holds it last frees it.
type buffer struct{ bytes []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func (b *buffer) free() { buffers.Put(b) }

// readBuffer reads all of r, whose length is known or negative, unless it is longer than limit.
func readBuffer(r io.Reader, length int64, limit int) (*buffer, error) {
	if length > int64(limit) {
		return nil, errTooLarge
	}
	b := buffers.Get().(*buffer)
	b.bytes = b.bytes[:0]
	if need := int(length) + 1; length >= 0 && cap(b.bytes) < need { // one more, so that the end is seen without growing
		b.bytes = make([]byte, 0, max(need, 4<<10))
	}
	for {
		if len(b.bytes) == cap(b.bytes) {
			b.bytes = append(b.bytes, 0)[:len(b.bytes)]
		}
		n, err := r.Read(b.bytes[len(b.bytes):cap(b.bytes)])
		b.bytes = b.bytes[:len(b.bytes)+n]
		switch {
		case len(b.bytes) > limit:
			err = errTooLarge
		case err == io.EOF:
			return b, nil
		}
		if err != nil {
			b.free()
			return nil, err
		}
	}
}
