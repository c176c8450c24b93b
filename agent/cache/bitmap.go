package cache

import "sync/atomic"

// bitmap is a set of block numbers. Safe for concurrent use.
type bitmap []atomic.Uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) get(i int) bool { return b[i/64].Load()&(1<<(i%64)) != 0 }

// set reports whether the bit was not set before.
func (b bitmap) set(i int) bool {
	mask := uint64(1) << (i % 64)
	return b[i/64].Or(mask)&mask == 0
}

func (b bitmap) clear(i int) { b[i/64].And(^(uint64(1) << (i % 64))) }

// byteAt returns bits 8*n to 8*n+7, the lowest first.
func (b bitmap) byteAt(n int) byte { return byte(b[n/8].Load() >> (n % 8 * 8)) }
