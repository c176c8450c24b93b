package convert

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
)

// cacheVersion is part of the cache's keys. Change it whenever the same layer would give other bytes.
const cacheVersion = "3"

// layerCache keeps converted layers, each in a directory of its own named by what determines its bytes. Directories appear
// by rename when they are complete and on disk, so a crash leaves nothing half-written under a key. Any number of
// processes may use one cache.
type layerCache struct {
	dir  string
	temp bool // dir was made for one conversion and goes with it
}

// openLayerCache opens or makes the cache in dir, and removes what crashed conversions left there.
func openLayerCache(dir, tempDir string) (*layerCache, error) {
	if dir == "" {
		dir, err := os.MkdirTemp(tempDir, "xylem-convert-")
		return &layerCache{dir: dir, temp: true}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &layerCache{dir: dir}
	return c, c.removeStale()
}

// close removes a cache that was made for one conversion.
func (c *layerCache) close() error {
	if c.temp {
		return os.RemoveAll(c.dir)
	}
	return nil
}

const workPrefix = "work-"

// removeStale removes the work directories that no living process has locked.
func (c *layerCache) removeStale() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		path := filepath.Join(c.dir, e.Name())
		if lock, err := lockDir(path); err == nil {
			err = os.RemoveAll(path)
			lock.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// workDir returns an empty locked directory in the cache; the lock lasts until the file is closed.
func (c *layerCache) workDir() (path string, lock *os.File, err error) {
	for range 10 {
		if path, err = os.MkdirTemp(c.dir, workPrefix); err != nil {
			return "", nil, err
		}
		// Another process may take the directory for stale and remove it before it is locked.
		if lock, err = lockDir(path); err != nil {
			continue
		}
		if _, err = os.Stat(path); err == nil {
			return path, lock, nil
		}
		lock.Close()
	}
	return "", nil, fmt.Errorf("work directory in %s: %w", c.dir, err)
}

func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// layerKey names what determines the bytes of a converted layer.
func layerKey(diffID digest.Digest, profile blockfmt.Profile) string {
	sum := sha256.Sum256([]byte(cacheVersion + "\n" + diffID.String() + "\n" + string(profile.Encode())))
	return hex.EncodeToString(sum[:])
}

// load returns the layer under key. A damaged one is removed and reported as ErrNotFound.
func (c *layerCache) load(key string) (*layer, error) {
	dir := filepath.Join(c.dir, key)
	l, err := loadLayer(dir)
	if errors.Is(err, blockfmt.ErrCorrupt) {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	}
	return l, err
}

func loadLayer(dir string) (*layer, error) {
	info, err := os.ReadFile(filepath.Join(dir, infoFile))
	if os.IsNotExist(err) {
		if _, err := os.Stat(dir); err == nil {
			return nil, fmt.Errorf("cached layer %s is incomplete: %w", dir, blockfmt.ErrCorrupt)
		}
		return nil, fmt.Errorf("cached layer %s: %w", dir, blockfmt.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	l := &layer{dir: dir, cached: true}
	if err := json.Unmarshal(info, &l.layerInfo); err != nil {
		return nil, fmt.Errorf("cached layer %s: %w: %w", dir, err, blockfmt.ErrCorrupt)
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("cached layer %s: %w: %w", dir, err, blockfmt.ErrCorrupt)
	}
	if l.tree, err = readMetadata(filepath.Join(dir, metadataFile)); err != nil {
		return nil, fmt.Errorf("cached layer %s: %w", dir, asCorrupt(err))
	}
	return l, nil
}

// check compares the files with what layer.json says: the blob by size (its bytes are verified by whoever receives them), the
// others by digest.
func (l *layer) check() error {
	blob, err := os.Stat(filepath.Join(l.dir, blobFile))
	if err != nil {
		return err
	}
	if blob.Size() != l.Blob.Size {
		return fmt.Errorf("blob of %d bytes, want %d", blob.Size(), l.Blob.Size)
	}
	for name, want := range map[string]digest.Digest{indexFile: l.Index.Digest, metadataFile: l.Metadata.Digest} {
		data, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			return err
		}
		if got := digest.FromBytes(data); got != want {
			return fmt.Errorf("%s hashes to %s, want %s", name, got, want)
		}
	}
	return nil
}

// keep moves a finished work directory under its key. If another process was first, that one's layer stays: it holds the same bytes.
func (c *layerCache) keep(work, key string) (dir string, err error) {
	if err := syncDir(work); err != nil {
		return "", err
	}
	dir = filepath.Join(c.dir, key)
	if err := os.Rename(work, dir); err != nil {
		if _, statErr := os.Stat(filepath.Join(dir, infoFile)); statErr != nil {
			return "", err
		}
		return dir, os.RemoveAll(work)
	}
	return dir, syncDir(c.dir)
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// writeFile writes a new file and syncs it.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// tempFile returns a file without a name, which vanishes when it is closed or the process dies.
func tempFile(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "xylem-spool-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
