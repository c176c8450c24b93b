package cache

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// found is a thing that takeStock found, with the time that orders it.
type found struct {
	*entry
	mtime time.Time
}

// takeStock fills the maps from the directory, oldest things next to eviction, and removes what does not belong there.
func (c *Cache) takeStock() error {
	if err := c.emptyTmp(); err != nil {
		return err
	}
	all, err := c.findBlocks()
	if err != nil {
		return err
	}
	for _, dir := range []string{"complete", "sparse"} {
		blobs, err := c.findBlobs(dir)
		if err != nil {
			return err
		}
		all = append(all, blobs...)
	}
	for _, dir := range []string{"plain", "manifests"} {
		files, err := c.findPlain(dir)
		if err != nil {
			return err
		}
		all = append(all, files...)
	}
	slices.SortStableFunc(all, func(a, b found) int { return a.mtime.Compare(b.mtime) })
	for _, f := range all {
		c.insert(f.entry)
	}
	return nil
}

func (c *Cache) emptyTmp() error {
	names, err := os.ReadDir(c.path("tmp"))
	for _, n := range names {
		err = errors.Join(err, os.RemoveAll(c.path("tmp", n.Name())))
	}
	return err
}

func (c *Cache) findBlocks() ([]found, error) {
	shards, err := os.ReadDir(c.path("blocks"))
	if err != nil {
		return nil, err
	}
	var all []found
	for _, shard := range shards {
		files, err := os.ReadDir(c.path("blocks", shard.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			id, err := blockfmt.ParseBlockID(f.Name())
			info, err2 := f.Info()
			if err != nil || err2 != nil || !info.Mode().IsRegular() || f.Name()[:2] != shard.Name() {
				_ = os.RemoveAll(c.path("blocks", shard.Name(), f.Name()))
				continue
			}
			all = append(all, found{&entry{id: id, size: info.Size()}, info.ModTime()})
		}
	}
	return all, nil
}

// findBlobs lists the blobs in "sparse" or "complete". It removes files without a partner, and those that are not
// complete and were written under another kernel.
func (c *Cache) findBlobs(dir string) ([]found, error) {
	files, err := os.ReadDir(c.path(dir))
	if err != nil {
		return nil, err
	}
	var all []found
	for _, f := range files {
		name, isMap := strings.CutSuffix(f.Name(), mapSuffix)
		if !isMap {
			if _, err := os.Lstat(c.path(dir, name+mapSuffix)); errors.Is(err, fs.ErrNotExist) {
				_ = os.RemoveAll(c.path(dir, name))
			}
			continue
		}
		e, mtime, err := c.inspect(dir, name)
		if err != nil {
			c.cfg.Logger.Info("decompressed data is discarded", "file", c.path(dir, name), "reason", err)
			_ = os.RemoveAll(c.path(dir, name))
			_ = os.RemoveAll(c.path(dir, f.Name()))
			continue
		}
		all = append(all, found{e, mtime})
	}
	return all, nil
}

func (c *Cache) inspect(dir, name string) (*entry, time.Time, error) {
	info, err := os.Lstat(c.path(dir, name))
	if err != nil {
		return nil, time.Time{}, err
	}
	m, err := readMap(c.path(dir, name+mapSuffix))
	if err != nil {
		return nil, time.Time{}, err
	}
	if err := m.check(name, info.Size(), dir == "complete", c.cfg.BootID); err != nil {
		return nil, time.Time{}, err
	}
	size := info.Size()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		size = st.Blocks * 512
	}
	idle := &idleBlob{name: name, dir: dir, blob: m.blob, size: m.rawSize, valid: m.validBytes()}
	return &entry{idle: idle, size: size}, info.ModTime(), nil
}
