// Package cache keeps a node's part of the images on its disk: compressed blocks, from which peers are served, and
// the decompressed data of blobs in sparse files, which FUSE splices to the kernel.
//
// On the way of the data, *Cache is the Store of a node's Source stack, and a *File stands between the stack and FUSE.
//
// Everything is safe against kill -9 at any moment and against loss of power: a compressed block is verified whenever it
// is read, so that a torn one is a miss; a decompressed one is marked valid after it was written, which is worth
// something as long as the kernel that holds the page cache lives, and after that only for files that were complete and
// synced. One process uses a directory at a time.
//
//	lock                     held by the process that uses the directory
//	tmp/                     what is being written or removed; emptied by Open
//	blocks/ab/ab01…          compressed blocks by ID
//	sparse/NAME, NAME.map    decompressed data of a blob, and which blocks of it are valid
//	complete/NAME, NAME.map  the same, complete and synced
//	plain/DIGEST             a blob of a registry as it is stored there, verified and synced before it got its name
//	manifests/DIGEST         a manifest: its media type, a line feed, its bytes
package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// Config of a Cache. Dir is needed, the rest has defaults.
type Config struct {
	// Dir is the directory, made if it does not exist. It should be on a local file system with sparse files.
	Dir string
	// Budget bounds the bytes on disk: compressed blocks, and decompressed data of blobs. Data of open blobs is counted
	// and never evicted, so that it alone can exceed the budget. Default 20 GiB.
	Budget int64
	// Fetches bounds the blocks that one call of File.Fill asks its Source for at a time. Default 32.
	Fetches int
	// BootID names the running kernel: what an unsynced file holds is believed only under the same one.
	// Default: /proc/sys/kernel/random/boot_id.
	BootID string
	// Logger gets a line for each block that is damaged, cannot be read or cannot be kept. Default: discard.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("cache: no directory is configured")
	}
	if c.Budget == 0 {
		c.Budget = 20 << 30
	}
	if c.Fetches == 0 {
		c.Fetches = 32
	}
	if c.Budget < 0 || c.Fetches < 0 {
		return c, fmt.Errorf("cache: budget of %d bytes, %d fetches", c.Budget, c.Fetches)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return c, fmt.Errorf("cache: %w", err)
		}
		c.BootID = strings.TrimSpace(string(id))
	}
	return c, nil
}

// Cache is a directory of blocks and decompressed blobs. It is a blockfmt.Store. Safe for concurrent use.
type Cache struct {
	cfg     Config
	lock    *os.File
	decoder decoder
	tmpName atomic.Uint64
	full    atomic.Bool // the last block could not be kept, and that was logged
	wg      sync.WaitGroup

	evicting  sync.Mutex // held by the one that evicts
	pointless time.Time  // until when eviction is not tried again; under evicting
	opening   sync.Mutex // held while blobs are opened and closed; taken before mu

	mu     sync.Mutex // guards what follows
	done   bool
	used   int64                       // bytes of blocks and of blobs, open and not
	blocks map[blockfmt.BlockID]*entry // compressed blocks
	idle   map[string]*entry           // blobs that are not open, by name
	plain  map[plainFile]*entry        // whole blobs as stored, and manifests
	drafts int64                       // bytes of used that belong to plain blobs on their way
	open   map[string]*blob            // by name
	order  sieve                       // of blocks, idle and plain
}

var subdirs = []string{"tmp", "blocks", "sparse", "complete", "plain", "manifests"}

// Open opens the cache in cfg.Dir: it takes the lock, removes what a crash left half-done, and takes stock. It fails if
// another process uses the directory.
func Open(cfg Config) (*Cache, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, d := range subdirs {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("cache: %s is used by another process: %w", cfg.Dir, err)
	}
	c := &Cache{cfg: cfg, lock: lock, decoder: newDecoder(), blocks: map[blockfmt.BlockID]*entry{}, idle: map[string]*entry{}, plain: map[plainFile]*entry{}, open: map[string]*blob{}}
	if err := c.takeStock(); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("cache: %w", err)
	}
	c.makeRoom(0)
	return c, nil
}

// Close ends what is under way and gives the directory free; a second Close does nothing. Files should be closed before;
// those that are not fail from now on.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return nil
	}
	c.done = true
	blobs := make([]*blob, 0, len(c.open))
	for _, b := range c.open {
		blobs = append(blobs, b)
	}
	c.mu.Unlock()
	for _, b := range blobs {
		b.stop()
	}
	c.wg.Wait()
	return c.lock.Close()
}

// Used returns the bytes on disk that count for the budget.
func (c *Cache) Used() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.cfg.Dir}, elem...)...)
}

// tmp returns a path in tmp/ that nobody else uses.
func (c *Cache) tmp() string {
	return c.path("tmp", fmt.Sprintf("%d", c.tmpName.Add(1)))
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
