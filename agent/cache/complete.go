package cache

import (
	"errors"
	"os"
	"path/filepath"
)

// maybeFinish begins sync if all blocks are there. It takes a reference: the files stay open meanwhile, and nobody who
// closes a File waits for the disk.
func (b *blob) maybeFinish() {
	c := b.cache
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left > 0 || b.complete || b.finish || b.stopped {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done || b.refs == 0 {
		return
	}
	b.refs++
	b.finish = true
	c.wg.Go(func() {
		err := b.sync()
		b.mu.Lock()
		b.finish = false
		b.mu.Unlock()
		switch {
		case errors.Is(err, errDamaged): // logged; the blob is complete when the block is back, which may be already
			b.maybeFinish()
		case err != nil:
			c.cfg.Logger.Warn("decompressed blob stays incomplete", "blob", b.ix.Blob(), "error", err)
		}
		c.opening.Lock()
		defer c.opening.Unlock()
		_ = b.release() // only closes
	})
}

var errDamaged = errors.New("a block on disk is damaged")

// sync makes a blob complete: it checks the blocks that an earlier process wrote, syncs data and map, and renames them.
// The order is data and map synced, map renamed, data renamed, directory synced: a file in complete/ with a map beside
// it is whole, whatever happens in between; without its partner it is removed by Open. Each block was verified against
// the chunk index before it was written, so that the whole needs no digest of its own.
func (b *blob) sync() error {
	for i := range b.ix.Len() {
		if b.good.get(i) {
			continue
		}
		if intact, err := b.check(i); !intact {
			return errors.Join(errDamaged, err)
		}
		b.good.set(i)
	}
	if err := errors.Join(b.data.Sync(), b.state.Sync()); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "complete" {
		b.complete = b.left == 0
		return nil
	}
	from, to := b.path(), b.cache.path("complete", b.name)
	if err := os.Rename(from+mapSuffix, to+mapSuffix); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Rename(to+mapSuffix, from+mapSuffix))
	}
	b.dir = "complete"
	if err := syncDir(filepath.Dir(to)); err != nil {
		return err
	}
	b.complete = b.left == 0
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
