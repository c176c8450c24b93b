package cache

import (
	"cmp"
	"slices"

	"github.com/opencontainers/go-digest"
)

// BlobInfo tells what is there of a blob's decompressed data.
type BlobInfo struct {
	Blob     digest.Digest `json:"blob"`     // the stored blob
	Size     int64         `json:"size"`     // uncompressed bytes
	Valid    int64         `json:"valid"`    // of them on disk
	Open     bool          `json:"open"`     // in use, and so not evicted
	Complete bool          `json:"complete"` // whole and synced
	Plain    bool          `json:"plain"`    // as the registry has it, for clients of the proxy; Size is that of the stored bytes
}

// List returns the blobs with decompressed data here, ordered by digest. A blob that was opened with different chunk
// indexes is listed for each.
func (c *Cache) List() []BlobInfo {
	c.mu.Lock()
	var list []BlobInfo
	for _, e := range c.idle {
		i := e.idle
		list = append(list, BlobInfo{Blob: i.blob, Size: i.size, Valid: i.valid, Complete: i.dir == "complete" && i.valid == i.size})
	}
	for file, e := range c.plain {
		if d, ok := file.blob(); ok {
			list = append(list, BlobInfo{Blob: d, Size: e.size, Valid: e.size, Complete: true, Plain: true})
		}
	}
	open := make([]*blob, 0, len(c.open))
	for _, b := range c.open {
		open = append(open, b)
	}
	c.mu.Unlock()
	for _, b := range open {
		valid := b.validBytes()
		b.mu.Lock()
		list = append(list, BlobInfo{Blob: b.ix.Blob(), Size: b.ix.RawSize(), Valid: valid, Open: true, Complete: b.complete})
		b.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b BlobInfo) int { return cmp.Compare(a.Blob, b.Blob) })
	return list
}

// Usage tells what counts for the budget.
type Usage struct {
	Budget     int64 `json:"budget"`     // bytes
	Used       int64 `json:"used"`       // bytes, of blocks and of decompressed data
	Blocks     int   `json:"blocks"`     // compressed blocks
	BlockBytes int64 `json:"blockBytes"` // bytes of them
	OpenBytes  int64 `json:"openBytes"`  // decompressed data that is in use
	PlainBytes int64 `json:"plainBytes"` // plain blobs and manifests, whole and on their way
}

// Usage returns the present use of the disk.
func (c *Cache) Usage() Usage {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := Usage{Budget: c.cfg.Budget, Used: c.used, Blocks: len(c.blocks), BlockBytes: c.used}
	for _, e := range c.idle {
		u.BlockBytes -= e.size
	}
	for _, b := range c.open {
		u.OpenBytes += b.fresh
	}
	u.PlainBytes = c.drafts
	for _, e := range c.plain {
		u.PlainBytes += e.size
	}
	u.BlockBytes -= u.OpenBytes + u.PlainBytes
	return u
}

// GC evicts until at most target bytes are used, and returns the bytes it freed. What mounts need stays, even if more is
// used then.
func (c *Cache) GC(target int64) (freed int64) {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	if over := c.Used() - max(0, target); over > 0 {
		return c.evictLocked(over)
	}
	return 0
}
