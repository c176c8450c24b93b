package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/xylem-project/xylem/blockfmt"
)

func (c *Cache) blockPath(id blockfmt.BlockID) string {
	s := id.String()
	return c.path("blocks", s[:2], s)
}

// Block implements blockfmt.Source. The bytes are verified; a damaged block is removed, logged, and not found.
func (c *Cache) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	e := c.blocks[ref.ID]
	if e != nil {
		e.visited = true
	}
	c.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("%v in cache: %w", ref, blockfmt.ErrNotFound)
	}
	stored, err := readBlock(c.blockPath(ref.ID), ref.Length)
	if err == nil {
		err = blockfmt.Verify(ref, stored)
	}
	if err == nil {
		return stored, nil
	}
	if e.size != ref.Length && blockIs(c.blockPath(ref.ID), ref.ID, e.size) {
		return nil, fmt.Errorf("%v in cache has %d bytes, not %d: %w", ref, e.size, ref.Length, blockfmt.ErrNotFound)
	}
	c.dropBlock(e, err)
	return nil, fmt.Errorf("%v in cache: %v: %w", ref, err, blockfmt.ErrNotFound)
}

// readBlock reads a file of exactly size bytes.
func readBlock(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != size {
		return nil, fmt.Errorf("file of the wrong size, want %d: %w", size, errors.Join(err, blockfmt.ErrCorrupt))
	}
	stored := make([]byte, size)
	if _, err := f.ReadAt(stored, 0); err != nil {
		return nil, err
	}
	return stored, nil
}

// blockIs says whether the file holds the block: then it was the Ref that had the wrong length.
func blockIs(path string, id blockfmt.BlockID, size int64) bool {
	stored, err := readBlock(path, size)
	return err == nil && blockfmt.IDOf(stored) == id
}

// dropBlock removes a block that cannot be read.
func (c *Cache) dropBlock(e *entry, reason error) {
	c.mu.Lock()
	mine := c.blocks[e.id] == e
	if mine {
		c.remove(e)
	}
	c.mu.Unlock()
	if !mine {
		return
	}
	_ = os.Remove(c.blockPath(e.id)) // gone already, or the next reader finds it
	if !errors.Is(reason, fs.ErrNotExist) {
		c.cfg.Logger.Warn("damaged block removed from the cache", "block", e.id, "error", reason)
	}
}

// Has implements blockfmt.Store.
func (c *Cache) Has(ref blockfmt.Ref) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocks[ref.ID] != nil
}

// Put implements blockfmt.Store.
func (c *Cache) Put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	if err := blockfmt.Verify(ref, stored); err != nil {
		return err
	}
	return c.Keep(ctx, ref, stored)
}

// Keep is Put for bytes that the caller has verified. A block for which there is no room is not kept: that is logged once
// and no error, for whoever has the bytes can go on.
func (c *Cache) Keep(_ context.Context, ref blockfmt.Ref, stored []byte) error {
	if c.Has(ref) {
		return nil
	}
	if !c.makeRoom(ref.Length) {
		c.notKept(fmt.Errorf("all %d bytes of the budget are in use", c.cfg.Budget))
		return nil
	}
	err := c.writeBlock(ref.ID, stored)
	if isFull(err) && c.evict(ref.Length) > 0 {
		err = c.writeBlock(ref.ID, stored)
	}
	if isFull(err) {
		c.notKept(err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("keep %v: %w", ref, err)
	}
	c.full.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[ref.ID] == nil {
		c.insert(&entry{id: ref.ID, size: ref.Length})
	}
	return nil
}

// notKept logs the first of a row of blocks that are not kept.
func (c *Cache) notKept(reason error) {
	if !c.full.Swap(true) {
		c.cfg.Logger.Warn("cache is full: blocks are used without being kept", "dir", c.cfg.Dir, "reason", reason)
	}
}

// writeBlock makes the block appear under its name with one rename. There is no fsync: after a loss of power the file may
// be torn, which its hash tells.
func (c *Cache) writeBlock(id blockfmt.BlockID, stored []byte) error {
	tmp, path := c.tmp(), c.blockPath(id)
	err := os.WriteFile(tmp, stored, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(c.path("blocks", id.String()[:2]), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
