package metadata

import "io"

// flushSize is how many bytes of an image are collected before they are written.
const flushSize = 256 << 10

// output collects an image in buf and writes it block by block. The length of buf is the offset of its end in the image
// apart from a multiple of blockSize, so code that appends can align by it.
type output struct {
	w     io.Writer
	super superblock
	buf   []byte
	off   int64 // bytes written
	err   error // the first failure; nothing is written after it
}

// flush writes the whole blocks of buf if they are at least that many bytes. Block 0 gets its superblock on the way, since
// the checksum covers all of it.
func (o *output) flush(least int) {
	n := len(o.buf) &^ (blockSize - 1)
	if n == 0 || n < least {
		return
	}
	if o.off == 0 {
		o.super.encode(o.buf[superOffset:blockSize])
	}
	if o.err == nil {
		_, o.err = o.w.Write(o.buf[:n])
	}
	o.off += int64(n)
	o.buf = o.buf[:copy(o.buf, o.buf[n:])]
}

// pad appends zeros up to an offset in the image.
func (o *output) pad(offset int64) {
	o.buf = append(o.buf, make([]byte, offset-o.off-int64(len(o.buf)))...)
}

// appendPadding appends zeros up to a multiple of unit bytes.
func appendPadding(b []byte, unit int) []byte {
	if r := len(b) % unit; r > 0 {
		b = append(b, make([]byte, unit-r)...)
	}
	return b
}
