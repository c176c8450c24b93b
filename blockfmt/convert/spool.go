package convert

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

const (
	// holeSize is the granularity in bytes at which runs of zeros are left out of a file's data.
	holeSize = 64 << 10
	// spoolChunk is how many bytes of a file are read, looked at and written at once; a multiple of holeSize.
	spoolChunk = 1 << 20
)

// spool collects the file data of one layer, uncompressed and in the order of the tar, as the blob will hold it unless a
// profile rearranges it: each file on a page boundary, zeros left out, identical content once.
//
// One goroutine adds files; at the same time another may read with a spoolReader what is final.
type spool struct {
	file *os.File
	// Owned by the goroutine that adds.
	end   int64                          // of the data, a multiple of blockfmt.PageSize
	known map[uint64][][]metadata.Extent // by hash of content: the files that are there
	buf   []byte
	other []byte // for comparing
	// A fast hash finds candidates, comparing decides: so the outcome depends neither on the seed nor on collisions, and
	// costs a fraction of a cryptographic hash of everything.
	hash maphash.Hash

	mu     sync.Mutex
	grown  sync.Cond
	ready  int64 // bytes from the start that do not change any more
	closed bool
	err    error
}

// newSpool returns an empty spool in file, which stays the caller's.
func newSpool(file *os.File) *spool {
	s := &spool{file: file, known: map[uint64][][]metadata.Extent{}, buf: make([]byte, spoolChunk), other: make([]byte, spoolChunk)}
	s.grown.L = &s.mu
	return s
}

// add keeps the data of a file and returns where: extents on device 0. Errors of r and of the file are passed on.
func (s *spool) add(r io.Reader, size int64) ([]metadata.Extent, error) {
	if size == 0 {
		return nil, nil
	}
	s.hash.Reset()
	var extents []metadata.Extent
	end := s.end
	for done := int64(0); done < size; {
		chunk := s.buf[:min(size-done, spoolChunk)]
		if _, err := io.ReadFull(r, chunk); err != nil {
			return nil, fmt.Errorf("tar: %w", asCorrupt(unexpectedEOF(err)))
		}
		var err error
		if extents, end, err = s.write(chunk, done, end, extents); err != nil {
			return nil, err
		}
		done += int64(len(chunk))
	}
	if len(extents) == 0 {
		return nil, nil
	}
	sum := s.hash.Sum64()
	for _, known := range s.known[sum] {
		if same, err := s.same(known, extents); err != nil {
			return nil, err
		} else if same {
			return known, nil // what was written is overwritten by the next file
		}
	}
	s.known[sum] = append(s.known[sum], extents)
	s.end = end
	s.publish()
	return extents, nil
}

// write appends to the file at end the parts of chunk that are not zeros. chunk begins at offset off of its file.
func (s *spool) write(chunk []byte, off, end int64, extents []metadata.Extent) ([]metadata.Extent, int64, error) {
	for at := 0; at < len(chunk); {
		run, zero := nextRun(chunk[at:])
		if !zero {
			data := chunk[at : at+run]
			s.hash.Write(data)
			if pad := -len(data) & (blockfmt.PageSize - 1); pad > 0 {
				data = append(bytes.Clone(data), make([]byte, pad)...)
			}
			if _, err := s.file.WriteAt(data, end); err != nil {
				return nil, 0, fmt.Errorf("spool: %w", err)
			}
			extents = appendExtent(extents, metadata.Extent{FileOffset: off + int64(at), Length: int64(run), DeviceOffset: end})
			end += int64(len(data))
		}
		at += run
	}
	return extents, end, nil
}

// same compares two files in the spool: their holes and their bytes.
func (s *spool) same(a, b []metadata.Extent) (bool, error) {
	if len(a) != len(b) {
		return false, nil
	}
	for i := range a {
		if a[i].FileOffset != b[i].FileOffset || a[i].Length != b[i].Length {
			return false, nil
		}
	}
	for i := range a {
		for done := int64(0); done < a[i].Length; done += spoolChunk {
			n := min(a[i].Length-done, spoolChunk)
			if _, err := s.file.ReadAt(s.buf[:n], a[i].DeviceOffset+done); err != nil {
				return false, fmt.Errorf("spool: %w", err)
			}
			if _, err := s.file.ReadAt(s.other[:n], b[i].DeviceOffset+done); err != nil {
				return false, fmt.Errorf("spool: %w", err)
			}
			if !bytes.Equal(s.buf[:n], s.other[:n]) {
				return false, nil
			}
		}
	}
	return true, nil
}

// nextRun returns the length of the longest prefix that is all zeros, or all not, in units of holeSize.
func nextRun(data []byte) (n int, zero bool) {
	for n < len(data) {
		unit := data[n:min(n+holeSize, len(data))]
		z := isZero(unit)
		if n > 0 && z != zero {
			break
		}
		zero = z
		n += len(unit)
	}
	return n, zero
}

var zeros [holeSize]byte

func isZero(data []byte) bool { return bytes.Equal(data, zeros[:len(data)]) }

// appendExtent appends e, as part of the last extent if it continues that one in file and device.
func appendExtent(extents []metadata.Extent, e metadata.Extent) []metadata.Extent {
	if n := len(extents); n > 0 {
		last := &extents[n-1]
		if last.Device == e.Device && last.FileOffset+last.Length == e.FileOffset && last.DeviceOffset+last.Length == e.DeviceOffset {
			last.Length += e.Length
			return extents
		}
	}
	return append(extents, e)
}

// finish ends the spool after the last file. A blob is never empty: without data it gets one page of zeros.
func (s *spool) finish() error {
	if s.end == 0 {
		if _, err := s.file.WriteAt(zeros[:blockfmt.PageSize], 0); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		s.end = blockfmt.PageSize
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready, s.closed = s.end, true
	s.grown.Broadcast()
	return nil
}

func (s *spool) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = s.end
	s.grown.Broadcast()
}

// fail ends the spool for readers: they get err. It has no effect after finish.
func (s *spool) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed, s.err = true, err
		s.grown.Broadcast()
	}
}

// spoolReader reads a spool from the start while it still grows.
type spoolReader struct {
	spool *spool
	pos   int64
}

func (r *spoolReader) Read(p []byte) (int, error) {
	s := r.spool
	s.mu.Lock()
	for s.ready-r.pos < int64(len(p)) && !s.closed {
		s.grown.Wait()
	}
	ready, err := s.ready, s.err
	s.mu.Unlock()
	switch n := min(int64(len(p)), ready-r.pos); {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	default:
		got, err := s.file.ReadAt(p[:n], r.pos)
		r.pos += int64(got)
		return got, err
	}
}

// unexpectedEOF makes an end within something an error.
func unexpectedEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
