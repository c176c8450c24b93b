package cache

import (
	"runtime"
	"sync"
)

// decoder lends buffers for decompressed blocks: as many at a time as there are processors, so that memory stays flat however
// many blocks arrive.
type decoder struct {
	slots   chan struct{}
	buffers *sync.Pool
}

func newDecoder() decoder {
	return decoder{make(chan struct{}, runtime.GOMAXPROCS(0)+1), &sync.Pool{New: func() any { return new([]byte) }}}
}

// with calls do with a buffer of at least n bytes' capacity, which do may keep no longer.
func (d decoder) with(n int64, do func(buf []byte) error) error {
	d.slots <- struct{}{}
	defer func() { <-d.slots }()
	buf := d.buffers.Get().(*[]byte)
	defer d.buffers.Put(buf)
	if int64(cap(*buf)) < n {
		*buf = make([]byte, 0, n)
	}
	return do((*buf)[:0])
}
