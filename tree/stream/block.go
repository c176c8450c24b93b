package stream

import (
	"sync"
	"sync/atomic"
)

// block is the verified bytes of a block in memory, shared by all who send them. Bytes that came in a buffer of a pool go
// back to it when the last holder lets go: fresh memory for every block costs more than its decryption. A holder that
// forgets to let go leaves the buffer to the garbage collector, which is never wrong.
type block struct {
	stored  []byte
	buf     []byte // nil: not of a pool
	pool    *buffers
	holders atomic.Int32
}

// newBlock returns a block with one holder.
func newBlock(stored []byte) *block {
	b := &block{stored: stored}
	b.holders.Store(1)
	return b
}

func (b *block) hold() *block {
	b.holders.Add(1)
	return b
}

func (b *block) release() {
	if b.holders.Add(-1) == 0 && b.buf != nil {
		b.pool.put(b.buf)
	}
}

const (
	bufferStep = 64 << 10
	bufferMax  = 1 << 20 // larger ones are not pooled
)

// buffers are pools of buffers by size.
type buffers [bufferMax / bufferStep]sync.Pool

// get returns an empty buffer with room for n bytes.
func (p *buffers) get(n int) []byte {
	if n <= 0 || n > bufferMax {
		return make([]byte, 0, n)
	}
	class := (n - 1) / bufferStep
	if b, ok := p[class].Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 0, (class+1)*bufferStep)
}

func (p *buffers) put(b []byte) {
	if n := cap(b); n > 0 && n <= bufferMax && n%bufferStep == 0 {
		b = b[:0]
		p[n/bufferStep-1].Put(&b)
	}
}
