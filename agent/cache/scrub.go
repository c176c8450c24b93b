package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// ScrubReport counts what Scrub read and what was bad.
type ScrubReport struct {
	Blocks    int   `json:"blocks"`    // compressed blocks read
	BadBlocks int   `json:"badBlocks"` // of them, removed
	Data      int   `json:"data"`      // decompressed blocks read
	BadData   int   `json:"badData"`   // of them, removed or fetched again
	Plain     int   `json:"plain"`     // plain blobs and manifests read
	BadPlain  int   `json:"badPlain"`  // of them, removed
	Bytes     int64 `json:"bytes"`     // read
}

// Scrub reads the whole cache, at most rate bytes per second (0: as fast as it goes), and compares compressed blocks with
// their hashes and decompressed ones with the checksums that were taken when they were written. Bad compressed blocks, and
// idle blobs with bad data, are removed; bad data of open blobs is fetched again. Each gets a line in the log.
// It returns early with ctx's error.
func (c *Cache) Scrub(ctx context.Context, rate int64) (ScrubReport, error) {
	s := scrubber{cache: c, ctx: ctx, rate: rate, start: time.Now()}
	blocks, idle, plain, open := c.snapshot()
	err := s.all(blocks, idle, open)
	for _, e := range plain {
		if err == nil {
			err = s.plain(e)
		}
	}
	c.opening.Lock()
	defer c.opening.Unlock()
	for _, b := range open {
		err = errors.Join(err, b.release())
	}
	return s.report, err
}

func (s *scrubber) all(blocks, idle []*entry, open []*blob) error {
	for _, e := range blocks {
		if err := s.block(e); err != nil {
			return err
		}
	}
	for _, e := range idle {
		if err := s.idle(e); err != nil {
			return err
		}
	}
	for _, b := range open {
		if err := s.open(b); err != nil {
			return err
		}
	}
	return nil
}

// snapshot returns all there is; the open blobs with one reference more.
func (c *Cache) snapshot() (blocks, idle, plain []*entry, open []*blob) {
	c.opening.Lock()
	defer c.opening.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.blocks {
		blocks = append(blocks, e)
	}
	for _, e := range c.idle {
		idle = append(idle, e)
	}
	for _, e := range c.plain {
		plain = append(plain, e)
	}
	for _, b := range c.open {
		b.refs++
		open = append(open, b)
	}
	return blocks, idle, plain, open
}

type scrubber struct {
	cache  *Cache
	ctx    context.Context
	rate   int64
	start  time.Time
	report ScrubReport
}

// pace counts n bytes and waits until they are due.
func (s *scrubber) pace(n int64) error {
	s.report.Bytes += n
	if s.rate <= 0 {
		return s.ctx.Err()
	}
	due := s.start.Add(time.Duration(float64(s.report.Bytes) / float64(s.rate) * float64(time.Second)))
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return s.ctx.Err()
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *scrubber) block(e *entry) error {
	if err := s.pace(e.size); err != nil {
		return err
	}
	s.report.Blocks++
	stored, err := readBlock(s.cache.blockPath(e.id), e.size)
	if err == nil && blockfmt.IDOf(stored) != e.id {
		err = fmt.Errorf("bytes do not match the hash: %w", blockfmt.ErrCorrupt)
	}
	if errors.Is(err, os.ErrNotExist) && !s.present(e) { // evicted meanwhile
		return nil
	}
	if err != nil {
		s.report.BadBlocks++
		s.cache.dropBlock(e, err)
	}
	return nil
}

func (s *scrubber) present(e *entry) bool {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	switch {
	case e.plain != "":
		return s.cache.plain[e.plain] == e
	case e.idle != nil:
		return s.cache.idle[e.idle.name] == e
	}
	return s.cache.blocks[e.id] == e
}

// idle checks a blob that is not open. One that is opened or evicted meanwhile is left to its user.
func (s *scrubber) idle(e *entry) error {
	path := s.cache.path(e.idle.dir, e.idle.name)
	m, err := readMap(path + mapSuffix)
	if err != nil {
		return s.badIdle(e, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return s.badIdle(e, err)
	}
	defer f.Close()
	off := int64(0)
	for i := range m.blocks {
		n := m.length(i)
		if m.get(i) {
			if err := s.pace(n); err != nil {
				return err
			}
			s.report.Data++
			if err := checkSum(s.cache.decoder, f, off, n, m.sum(i)); err != nil {
				return s.badIdle(e, fmt.Errorf("block %d: %w", i, err))
			}
		}
		off += n
	}
	return nil
}

func checkSum(d decoder, f *os.File, off, n int64, sum uint32) error {
	if n > blockfmt.MaxBlockSize {
		return fmt.Errorf("%d bytes: %w", n, blockfmt.ErrCorrupt)
	}
	return d.with(n, func(buf []byte) error {
		if _, err := f.ReadAt(buf[:n], off); err != nil {
			return err
		}
		if crc32.Checksum(buf[:n], crcTable) != sum {
			return fmt.Errorf("bytes do not match the checksum: %w", blockfmt.ErrCorrupt)
		}
		return nil
	})
}

// badIdle removes an idle blob: its good blocks are not worth the care.
func (s *scrubber) badIdle(e *entry, reason error) error {
	c := s.cache
	c.opening.Lock()
	defer c.opening.Unlock()
	c.mu.Lock()
	var doomed []string
	mine := c.idle[e.idle.name] == e
	if mine {
		doomed = c.unlink(e)
	}
	c.mu.Unlock()
	if !mine {
		return nil
	}
	s.report.BadData++
	for _, path := range doomed {
		_ = os.Remove(path) // what stays is removed by the next Open
	}
	c.cfg.Logger.Warn("damaged decompressed data removed from the cache", "blob", e.idle.blob, "error", reason)
	return nil
}

// open checks a blob in use. Bad blocks are taken back, and fetched again in place: a mount may read the file directly.
func (s *scrubber) open(b *blob) error {
	for i := range b.ix.Len() {
		if !b.have.get(i) {
			continue
		}
		if err := s.pace(b.ix.Ref(i).RawLength); err != nil {
			return err
		}
		s.report.Data++
		intact, err := b.check(i)
		if intact {
			continue
		}
		s.report.BadData++
		if err != nil {
			return err
		}
		if f := b.anyFile(); f != nil {
			_ = f.Prefetch(s.ctx, i) // logged; the next reader tries again
		}
	}
	return nil
}
