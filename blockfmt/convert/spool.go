package convert

import (
	"bytes"
	"errors"
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

// spool collects the file data of one layer, uncompressed, as the blob will hold it unless a profile rearranges it: the
// sections one after the other, in each the files in the order of the tar, each file on a page boundary, zeros left out,
// identical content once.
//
// One goroutine adds files; at the same time another may read with a spoolReader what is final.
type spool struct {
	files [sections]*os.File
	// Owned by the goroutine that adds.
	ends  [sections]int64                // of the data, multiples of blockfmt.PageSize
	known map[uint64][][]metadata.Extent // by hash of content: the files that are there
	buf   []byte
	other []byte // for comparing
	// A fast hash finds candidates, comparing decides: so the outcome depends neither on the seed nor on collisions, and
	// costs a fraction of a cryptographic hash of everything.
	hash maphash.Hash

	mu     sync.Mutex
	grown  sync.Cond
	ready  int64 // bytes of the first section that do not change any more
	closed bool
	err    error
}

// newSpool returns an empty spool in files without names in dir. Close it when done.
func newSpool(dir string) (*spool, error) {
	s := &spool{known: map[uint64][][]metadata.Extent{}, buf: make([]byte, spoolChunk), other: make([]byte, spoolChunk)}
	s.grown.L = &s.mu
	for i := range s.files {
		var err error
		if s.files[i], err = tempFile(dir); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Close removes the spool's data.
func (s *spool) Close() (err error) {
	for _, f := range s.files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// add keeps the data of a file in a section and returns where: extents whose device is the section. Errors of r and of the
// spool's files are passed on.
func (s *spool) add(in section, r io.Reader, size int64) ([]metadata.Extent, error) {
	if size == 0 {
		return nil, nil
	}
	s.hash.Reset()
	var extents []metadata.Extent
	end := s.ends[in]
	for done := int64(0); done < size; {
		chunk := s.buf[:min(size-done, spoolChunk)]
		if _, err := io.ReadFull(r, chunk); err != nil {
			return nil, fmt.Errorf("tar: %w", asCorrupt(unexpectedEOF(err)))
		}
		var err error
		if extents, end, err = s.write(in, chunk, done, end, extents); err != nil {
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
	s.ends[in] = end
	s.publish()
	return extents, nil
}

// write appends to the section at end the parts of chunk that are not zeros. chunk begins at offset off of its file.
func (s *spool) write(in section, chunk []byte, off, end int64, extents []metadata.Extent) ([]metadata.Extent, int64, error) {
	for at := 0; at < len(chunk); {
		run, zero := nextRun(chunk[at:])
		if !zero {
			data := chunk[at : at+run]
			s.hash.Write(data)
			if pad := -len(data) & (blockfmt.PageSize - 1); pad > 0 {
				data = append(bytes.Clone(data), make([]byte, pad)...)
			}
			if _, err := s.files[in].WriteAt(data, end); err != nil {
				return nil, 0, fmt.Errorf("spool: %w", err)
			}
			extents = appendExtent(extents, metadata.Extent{FileOffset: off + int64(at), Length: int64(run), Device: int(in), DeviceOffset: end})
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
			if _, err := s.files[a[i].Device].ReadAt(s.buf[:n], a[i].DeviceOffset+done); err != nil {
				return false, fmt.Errorf("spool: %w", err)
			}
			if _, err := s.files[b[i].Device].ReadAt(s.other[:n], b[i].DeviceOffset+done); err != nil {
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

// size returns the bytes of all sections.
func (s *spool) size() (n int64) {
	for _, end := range s.ends {
		n += end
	}
	return n
}

// join puts the sections one after the other, as device 0: it rewrites the extents of the tree whose files were added, once.
func (s *spool) join(t *metadata.Tree) error {
	var start [sections]int64
	for i := 1; i < int(sections); i++ {
		start[i] = start[i-1] + s.ends[i-1]
	}
	return eachInode(t, func(in *metadata.Inode) {
		joined := make([]metadata.Extent, len(in.Extents)) // identical files share theirs
		for i, e := range in.Extents {
			joined[i] = metadata.Extent{FileOffset: e.FileOffset, Length: e.Length, DeviceOffset: start[e.Device] + e.DeviceOffset}
		}
		in.Extents = joined
	})
}

// eachInode calls do once for each inode of the tree that has data.
func eachInode(t *metadata.Tree, do func(*metadata.Inode)) error {
	done := map[*metadata.Inode]bool{}
	return t.Walk(func(_ string, in *metadata.Inode) error {
		if len(in.Extents) > 0 && !done[in] {
			done[in] = true
			do(in)
		}
		return nil
	})
}

// part returns a reader of bytes [start, end) of the joined sections of a finished spool.
func (s *spool) part(start, end int64) io.Reader {
	var readers []io.Reader
	for i, f := range s.files {
		if from, to := max(start, 0), min(end, s.ends[i]); from < to {
			readers = append(readers, io.NewSectionReader(f, from, to-from))
		}
		start, end = start-s.ends[i], end-s.ends[i]
	}
	return io.MultiReader(readers...)
}

// finish ends the spool after the last file. A blob is never empty: without data it gets one page of zeros.
func (s *spool) finish() error {
	if s.size() == 0 {
		if _, err := s.files[0].WriteAt(zeros[:blockfmt.PageSize], 0); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		s.ends[0] = blockfmt.PageSize
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready, s.closed = s.ends[0], true
	s.grown.Broadcast()
	return nil
}

func (s *spool) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = s.ends[0]
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

// spoolReader reads a spool from the start: the first section while it still grows, the others when the spool is finished.
type spoolReader struct {
	spool *spool
	pos   int64
	rest  io.Reader // of the other sections; nil: not there yet
}

func (r *spoolReader) Read(p []byte) (int, error) {
	if r.rest != nil {
		return r.rest.Read(p)
	}
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
		r.rest = s.part(ready, s.size())
		return r.rest.Read(p)
	default:
		got, err := s.files[0].ReadAt(p[:n], r.pos)
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
