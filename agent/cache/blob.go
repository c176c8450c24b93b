package cache

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// blob is the decompressed data of a blob that is open, shared by its Files.
type blob struct {
	cache *Cache
	ix    *blockfmt.Index
	name  string
	data  *os.File
	state *os.File       // the map file
	refs  int            // Files, and finish while it runs; under Cache.mu
	fresh int64          // bytes on disk that count for the budget; under Cache.mu
	wg    sync.WaitGroup // of the fills

	good bitmap // written or checked by this process: the fast path's question
	have bitmap // on disk by the map; those that are not good are checked when they are first read

	mu       sync.Mutex // guards what follows
	dir      string     // "sparse" or "complete"
	fills    map[int]*fill
	files    map[*File]bool
	sums     []byte // CRC-32C of each block that is there, 4 bytes each
	written  uint64 // blocks ever
	left     int    // blocks that are not there
	stopped  bool
	finish   bool // under way
	complete bool // in complete/, all there, synced
}

// openBlob returns the blob that ix describes, with one reference more. opening is held.
func (c *Cache) openBlob(ix *blockfmt.Index) (*blob, error) {
	sum := indexSum(ix)
	name := blobName(ix.Blob(), sum)
	c.mu.Lock()
	b, idle, done := c.open[name], c.idle[name], c.done
	switch {
	case done:
	case b != nil:
		b.refs++
	case idle != nil:
		c.remove(idle) // out of eviction's reach; the bytes are counted again below
	}
	c.mu.Unlock()
	if done {
		return nil, fmt.Errorf("open %s: cache is closed", ix.Blob())
	}
	if b != nil {
		return b, nil
	}
	b = &blob{cache: c, ix: ix, name: name, refs: 1, fills: map[int]*fill{}, files: map[*File]bool{}, dir: "sparse", good: newBitmap(ix.Len()), have: newBitmap(ix.Len())}
	m := newMap(ix, sum, c.cfg.BootID)
	err := error(fs.ErrNotExist)
	if idle != nil {
		b.dir, b.fresh = idle.idle.dir, idle.size
		err = b.openFiles(&m)
	}
	if err != nil {
		if idle != nil {
			c.cfg.Logger.Warn("decompressed data cannot be used and is fetched again", "blob", ix.Blob(), "error", err)
			_ = errors.Join(os.Remove(b.path()), os.Remove(b.path()+mapSuffix))
		}
		m = newMap(ix, sum, c.cfg.BootID)
		if err := b.createFiles(m); err != nil {
			return nil, fmt.Errorf("open %s in cache: %w", ix.Blob(), err)
		}
	}
	b.adopt(m)
	c.mu.Lock()
	c.open[name] = b
	c.used += b.fresh
	c.mu.Unlock()
	return b, nil
}

// openFiles opens what an earlier process or opener left, and replaces *m by its map.
func (b *blob) openFiles(m **blockMap) (err error) {
	path := b.path()
	if b.data, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return err
	}
	old, err := readMap(path + mapSuffix)
	if err == nil && old.index != (*m).index {
		err = fmt.Errorf("map of another index: %w", blockfmt.ErrCorrupt)
	}
	if err == nil {
		b.state, err = os.OpenFile(path+mapSuffix, os.O_RDWR, 0)
	}
	if err != nil {
		return errors.Join(err, b.data.Close())
	}
	*m = old
	return nil
}

// createFiles starts anew. The map appears by a rename, so that it is never seen half-written, and before it the
// data, which without a map is removed by Open.
func (b *blob) createFiles(m *blockMap) (err error) {
	b.dir, b.fresh = "sparse", 0
	path, tmp := b.path(), b.cache.tmp()
	if b.data, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return err
	}
	if err = b.data.Truncate(m.rawSize); err == nil {
		b.state, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err == nil {
		if _, err = b.state.WriteAt(m.encode(), 0); err == nil {
			err = os.Rename(tmp, path+mapSuffix)
		}
		if err != nil {
			err = errors.Join(err, b.state.Close(), os.Remove(tmp))
		}
	}
	if err != nil {
		return errors.Join(err, b.data.Close(), os.Remove(path))
	}
	return nil
}

// adopt takes over what the map says.
func (b *blob) adopt(m *blockMap) {
	b.sums = m.sums
	for i := range m.blocks {
		if m.get(i) {
			b.have.set(i)
		} else {
			b.left++
		}
	}
	b.complete = b.dir == "complete" && b.left == 0
}

// anyFile returns one of the Files, nil if there are none.
func (b *blob) anyFile() *File {
	b.mu.Lock()
	defer b.mu.Unlock()
	for f := range b.files {
		return f
	}
	return nil
}

func (b *blob) inComplete() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dir == "complete"
}

// path returns where the data lies now; mu is held, or nobody else has the blob.
func (b *blob) path() string { return filepath.Join(b.cache.cfg.Dir, b.dir, b.name) }

// release gives one reference back. Without references the blob becomes idle. opening is held.
func (b *blob) release() error {
	c := b.cache
	c.mu.Lock()
	b.refs--
	last := b.refs == 0
	c.mu.Unlock()
	if !last {
		return nil
	}
	b.stop()
	c.mu.Lock()
	delete(c.open, b.name)
	c.used -= b.fresh
	c.insert(&entry{size: b.fresh, visited: true, idle: &idleBlob{name: b.name, dir: b.dir, blob: b.ix.Blob(), size: b.ix.RawSize(), valid: b.validBytes()}})
	c.mu.Unlock()
	return errors.Join(b.data.Close(), b.state.Close())
}

// stop cancels the fills that are under way, lets none begin, and waits.
func (b *blob) stop() {
	b.mu.Lock()
	b.stopped = true
	for _, k := range b.fills {
		k.cancel()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *blob) validBytes() (n int64) {
	for i := range b.ix.Len() {
		if b.have.get(i) {
			n += b.ix.Ref(i).RawLength
		}
	}
	return n
}

// keep writes the raw bytes of block i and marks it valid. A full disk is tried again after eviction. The budget is no
// reason to fail, but to evict what is needed less.
func (b *blob) keep(i int, raw []byte) error {
	defer b.cache.makeRoom(0)
	for try := 0; ; try++ {
		err := b.write(i, raw)
		if !isFull(err) || try == 3 || b.cache.evict(4*int64(len(raw))) == 0 {
			return err
		}
	}
}

func (b *blob) write(i int, raw []byte) error {
	if _, err := b.data.WriteAt(raw, b.ix.Ref(i).RawOffset); err != nil {
		return err
	}
	if b.inComplete() { // a block that is repaired: what lies there is believed after a loss of power
		if err := b.data.Sync(); err != nil {
			return err
		}
	}
	var sum [4]byte
	putSum(sum[:], crc32.Checksum(raw, crcTable))
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.state.WriteAt(sum[:], sumOffset(b.ix.Len(), i)); err != nil {
		return err
	}
	copy(b.sums[4*i:], sum[:])
	b.written++
	if b.have.set(i) {
		if err := b.writeBit(i); err != nil {
			b.have.clear(i)
			return err
		}
		b.left--
		b.count(int64(len(raw)))
	}
	b.good.set(i)
	return nil
}

// writeBit writes the byte of the map that holds bit i; mu is held.
func (b *blob) writeBit(i int) error {
	_, err := b.state.WriteAt([]byte{b.have.byteAt(i / 8)}, bitOffset(i))
	return err
}

// count adds to the bytes on disk.
func (b *blob) count(n int64) {
	b.cache.mu.Lock()
	defer b.cache.mu.Unlock()
	b.fresh += n
	b.cache.used += n
}

// check reports whether the bytes of block i on disk are those that were written, and takes the block back if not: it logs
// that, once for whoever finds out.
func (b *blob) check(i int) (intact bool, err error) {
	ref := b.ix.Ref(i)
	err = b.cache.decoder.with(ref.RawLength, func(buf []byte) (err error) {
		for again := true; again; {
			intact, again, err = b.compare(i, buf[:ref.RawLength])
		}
		return err
	})
	return intact, err
}

// compare is one try of check. Bytes may be repaired while they are read: again says that something was written meanwhile.
func (b *blob) compare(i int, buf []byte) (intact, again bool, err error) {
	b.mu.Lock()
	written := b.written
	b.mu.Unlock()
	_, failed := b.data.ReadAt(buf, b.ix.Ref(i).RawOffset)
	sum := crc32.Checksum(buf, crcTable)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case failed == nil && sum == getSum(b.sums[4*i:]):
		return true, false, nil
	case written != b.written:
		return false, true, nil
	}
	return false, false, b.discard(i)
}

// discard takes block i back; mu is held.
func (b *blob) discard(i int) error {
	if !b.have.get(i) {
		return nil
	}
	b.cache.cfg.Logger.Warn("damaged decompressed data is fetched again", "blob", b.ix.Blob(), "block", i)
	b.good.clear(i)
	b.have.clear(i)
	b.left++
	b.complete = false
	b.count(-b.ix.Ref(i).RawLength)
	return b.writeBit(i)
}
