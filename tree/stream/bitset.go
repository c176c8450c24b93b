package stream

import "math/bits"

// bitset is a set of block numbers.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitset) add(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) remove(i int)   { b[i/64] &^= 1 << (i % 64) }

func (b bitset) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// slice returns the set's part from number first, a multiple of 8, as a bitmap of at most max bytes without trailing zeros.
func (b bitset) slice(first, max int) []byte {
	var out []byte
	for i := first / 8; i < first/8+max && i/8 < len(b); i++ {
		out = append(out, byte(b[i/8]>>(i%8*8)))
	}
	for len(out) > 0 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// each calls f for the numbers of a bitmap that begins at number first.
func each(bitmap []byte, first int, f func(i int)) {
	for at, b := range bitmap {
		for ; b != 0; b &= b - 1 {
			f(first + 8*at + bits.TrailingZeros8(b))
		}
	}
}
