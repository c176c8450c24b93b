package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// diskUse returns the bytes of all regular files below a directory.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBudget(t *testing.T) {
	const budget = 1 << 20
	blob := blocktest.NewBlob(1, 8<<20, 64<<10)
	cfg := cache.Config{Dir: t.TempDir(), Budget: budget}
	c := open(t, cfg)
	hot := blob.Index.Ref(0)
	for _, ref := range blob.Refs() {
		if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Block(t.Context(), hot); err != nil {
			t.Fatalf("the block that is read again and again was evicted: %v", err)
		}
		if used := c.Used(); used > budget {
			t.Fatalf("%d bytes used", used)
		}
	}
	if used, disk := c.Used(), diskUse(t, filepath.Join(cfg.Dir, "blocks")); used != disk || used < budget*9/10 {
		t.Errorf("%d bytes used, %d on disk; want them equal and about %d", used, disk, budget)
	}
	if u := c.Usage(); u.BlockBytes != u.Used || u.Blocks == 0 || u.Budget != budget {
		t.Errorf("usage %+v", u)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Budget = budget / 2
	c2, err := cache.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	if used := c2.Used(); used > budget/2 {
		t.Errorf("%d bytes used after Open with a smaller budget", used)
	}
}

// TestEvictionSparesMounts: what an open blob has decompressed, and the blocks that it has not, stay.
func TestEvictionSparesMounts(t *testing.T) {
	blob, other := blocktest.NewBlob(2, 1<<20, 64<<10), blocktest.NewBlob(3, 4<<20, 64<<10)
	logs := &logBook{}
	c := open(t, cache.Config{Budget: 2 << 20, Logger: logs.logger()})
	f := openFile(t, c, blob, c, nil) // its Source is the cache: the registry is gone
	for _, ref := range blob.Refs() {
		if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	checkRange(t, f, blob, 0, 512<<10)
	for _, ref := range other.Refs() {
		if err := c.Put(t.Context(), ref, other.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	c.GC(0)
	for i, ref := range blob.Refs() {
		if needed := i >= 8; c.Has(ref) != needed {
			t.Errorf("block %d: in cache %v, needed %v", i, c.Has(ref), needed)
		}
	}
	checkRange(t, f, blob, 0, len(blob.Raw))
	c.GC(0)
	checkRange(t, f, blob, 0, len(blob.Raw))
	if u := c.Usage(); u.Blocks != 0 || u.OpenBytes != int64(len(blob.Raw)) {
		t.Errorf("usage %+v, want no blocks and %d bytes open", u, len(blob.Raw))
	}
	if w := logs.lines(); len(w) != 0 {
		t.Errorf("logged %q", w)
	}
}

// TestOpenDataFillsBudget: with more open data than budget everything works, without keeping blocks.
func TestOpenDataFillsBudget(t *testing.T) {
	blob := blocktest.NewBlob(4, 2<<20, 64<<10)
	logs := &logBook{}
	c := open(t, cache.Config{Budget: 1 << 20, Logger: logs.logger()})
	f := openFile(t, c, blob, blob, nil)
	checkRange(t, f, blob, 0, len(blob.Raw))
	for _, ref := range blob.Refs() {
		if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	if w := logs.lines(); len(w) != 1 || !strings.Contains(w[0], "cache is full") {
		t.Errorf("logged %q, want one line", w)
	}
}

// TestDataDisplacesBlocks: decompressed data takes its room from what is needed less, though nothing is put.
func TestDataDisplacesBlocks(t *testing.T) {
	blob, other := blocktest.NewBlob(10, 512<<10, 64<<10), blocktest.NewBlob(11, 2<<20, 64<<10)
	c := open(t, cache.Config{Budget: 1200 << 10})
	for _, ref := range other.Refs() {
		if err := c.Put(t.Context(), ref, other.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	f := openFile(t, c, blob, blob, nil)
	checkRange(t, f, blob, 0, len(blob.Raw))
	if used := c.Used(); used > 1200<<10 {
		t.Errorf("%d bytes used", used)
	}
}

func TestIdleBlobIsEvicted(t *testing.T) {
	blob := blocktest.NewBlob(5, 1<<20, 64<<10)
	cfg := cache.Config{Dir: t.TempDir()}
	c := open(t, cfg)
	f, err := c.OpenFile(blob.Index, blob, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkRange(t, f, blob, 0, len(blob.Raw))
	waitComplete(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); c.List()[0].Open; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the sync in the background keeps the blob open")
		}
	}
	if l := c.List(); len(l) != 1 || !l[0].Complete || l[0].Valid != 1<<20 {
		t.Errorf("list %+v", l)
	}
	if freed := c.GC(0); freed != 1<<20 || c.Used() != 0 || diskUse(t, cfg.Dir) != 0 {
		t.Errorf("freed %d, %d used, %d on disk", freed, c.Used(), diskUse(t, cfg.Dir))
	}
	count := &blocktest.Counting{Next: blob}
	checkRange(t, openFile(t, c, blob, count, nil), blob, 0, len(blob.Raw))
	if count.Total() != blob.Index.Len() {
		t.Errorf("%d blocks fetched", count.Total())
	}
}

// smallDisk mounts a file system of the given size.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount tmpfs (the tests need root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestDiskFull: a block for which the disk has no room is not kept; that is one line in the log, and no error.
func TestDiskFull(t *testing.T) {
	blob := blocktest.NewBlob(6, 2<<20, 64<<10)
	logs := &logBook{}
	dir := smallDisk(t, "size=1m")
	if err := os.WriteFile(filepath.Join(dir, "others"), make([]byte, 900<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, cache.Config{Dir: dir, Logger: logs.logger()})
	f := openFile(t, c, blob, blob, nil) // so that nothing can be evicted
	for _, ref := range blob.Refs() {
		if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	if w := logs.lines(); len(w) != 1 || !strings.Contains(w[0], "no space left") {
		t.Errorf("logged %q, want one line", w)
	}
	err := f.Fill(t.Context(), 0, f.Size()) // there is no room for this at all
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fill: %v, want ENOSPC", err)
	}
	if err := os.Remove(filepath.Join(dir, "others")); err != nil {
		t.Fatal(err)
	}
	checkRange(t, f, blob, 0, 400<<10)
}

// TestInodeTableFull: the same when files, and not bytes, have run out. What is open has its files already.
func TestInodeTableFull(t *testing.T) {
	blob := blocktest.NewBlob(6, 2<<20, 64<<10)
	logs := &logBook{}
	c := open(t, cache.Config{Dir: smallDisk(t, "nr_inodes=24"), Logger: logs.logger()})
	f := openFile(t, c, blob, blob, nil)
	for _, ref := range blob.Refs() {
		if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	kept := 0
	for _, ref := range blob.Refs() {
		if c.Has(ref) {
			kept++
		}
	}
	if kept == len(blob.Refs()) {
		t.Fatal("there was an inode for every block")
	}
	checkRange(t, f, blob, 0, len(blob.Raw))
	if _, err := c.OpenFile(blocktest.NewBlob(7, 1<<20, 64<<10).Index, blob, nil); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("another blob: %v", err)
	}
}

// TestDiskFullEvicts: room for what a mount reads is made by eviction.
func TestDiskFullEvicts(t *testing.T) {
	blob, old := blocktest.NewBlob(7, 1<<20, 64<<10), blocktest.NewBlob(8, 4<<20, 64<<10)
	dir := smallDisk(t, "size=2m")
	c := open(t, cache.Config{Dir: dir})
	for _, ref := range old.Refs() {
		if err := c.Put(t.Context(), ref, old.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	f := openFile(t, c, blob, blob, nil)
	checkRange(t, f, blob, 0, len(blob.Raw))
}

func TestSieveOrder(t *testing.T) {
	blob := blocktest.NewBlob(9, 640<<10, 64<<10)
	c := open(t, cache.Config{})
	var size int64
	for _, ref := range blob.Refs() {
		size += ref.Length
		if err := c.Put(t.Context(), ref, blob.Bytes(ref)); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{0, 2} {
		if _, err := c.Block(t.Context(), blob.Index.Ref(i)); err != nil {
			t.Fatal(err)
		}
	}
	c.GC(size - 1) // one goes: the oldest that was not visited
	c.GC(size - blob.Index.Ref(1).Length - 1)
	for i, want := range []bool{true, false, true, false, true, true} {
		if got := c.Has(blob.Index.Ref(i)); got != want {
			t.Errorf("block %d in cache: %v, want %v", i, got, want)
		}
	}
	var _ blockfmt.Store = c
}
