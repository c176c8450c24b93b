package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// Plain blobs are what a registry stores, for clients that pull images as they are. They are whole or on their way: a blob on
// its way lies in tmp/ and does not survive its process. It counts for the budget with all of its bytes from the beginning.

// plainFile is the name of a plain blob's or a manifest's file, with its directory: "plain/sha256-…".
type plainFile string

func plainFileOf(dir string, d digest.Digest) plainFile {
	return plainFile(filepath.Join(dir, d.Algorithm().String()+"-"+d.Encoded()))
}

// digest returns what the file's name says, and its directory.
func (f plainFile) digest() (dir string, d digest.Digest, err error) {
	dir, name := filepath.Split(string(f))
	algorithm, hex, _ := strings.Cut(name, "-")
	d = digest.Digest(algorithm + ":" + hex)
	return filepath.Clean(dir), d, d.Validate()
}

// blob returns the digest of a plain blob; ok is false for a manifest.
func (f plainFile) blob() (d digest.Digest, ok bool) {
	dir, d, err := f.digest()
	return d, err == nil && dir == "plain"
}

func (c *Cache) plainPath(f plainFile) string { return c.path(string(f)) }

// OpenPlain opens a plain blob that is whole, or returns ErrNotFound. What is open can be read also after eviction.
func (c *Cache) OpenPlain(d digest.Digest) (*os.File, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("plain blob %.80q: %w: %w", d, err, blockfmt.ErrUnsupported)
	}
	return c.openPlain(plainFileOf("plain", d))
}

func (c *Cache) openPlain(name plainFile) (*os.File, error) {
	c.mu.Lock()
	e := c.plain[name]
	if e != nil {
		e.visited = true
	}
	c.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("%s in cache: %w", name, blockfmt.ErrNotFound)
	}
	f, err := os.Open(c.plainPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		c.dropPlain(e, err)
		return nil, fmt.Errorf("%s in cache: %w: %w", name, err, blockfmt.ErrNotFound)
	}
	return f, err
}

// dropPlain removes a file that cannot be used, unless somebody else did.
func (c *Cache) dropPlain(e *entry, reason error) {
	c.mu.Lock()
	var doomed []string
	mine := c.plain[e.plain] == e
	if mine {
		doomed = c.unlink(e)
	}
	c.mu.Unlock()
	for _, path := range doomed {
		_ = os.Remove(path) // what stays is removed by the next Open
	}
	if mine {
		c.cfg.Logger.Warn("damaged file removed from the cache", "file", e.plain, "error", reason)
	}
}

// Draft is a plain blob on its way. Blocks are written and read through it; close it when done. Safe for concurrent use but for
// Keep and Close.
type Draft struct {
	cache *Cache
	name  plainFile
	size  int64
	path  string
	file  *os.File
	kept  bool
}

// CreatePlain makes room for a plain blob of size bytes. An error without a kind says that there is none.
func (c *Cache) CreatePlain(d digest.Digest, size int64) (*Draft, error) {
	if err := d.Validate(); err != nil || size < 0 {
		return nil, fmt.Errorf("plain blob %.80q of %d bytes: %w: %w", d, size, err, blockfmt.ErrUnsupported)
	}
	if !c.makeRoom(size) {
		return nil, fmt.Errorf("no room for %d bytes of blob %s: all of the budget is in use", size, d)
	}
	t := &Draft{cache: c, name: plainFileOf("plain", d), size: size, path: c.tmp()}
	var err error
	if t.file, err = os.OpenFile(t.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	if err := t.file.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("blob %s: %w", d, err), t.file.Close(), os.Remove(t.path))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used += size
	c.drafts += size
	return t, nil
}

// ReadAt implements io.ReaderAt.
func (t *Draft) ReadAt(p []byte, off int64) (int, error) { return t.file.ReadAt(p, off) }

// WriteAt implements io.WriterAt. A full disk is tried again after eviction.
func (t *Draft) WriteAt(p []byte, off int64) (int, error) {
	for try := 0; ; try++ {
		n, err := t.file.WriteAt(p, off)
		if !isFull(err) || try == 3 || t.cache.evict(4*int64(len(p))) == 0 {
			return n, err
		}
	}
}

// Keep makes the blob one that OpenPlain finds, also after a loss of power: it syncs the file, gives it its name and syncs the directory.
// The caller has checked the digest.
func (t *Draft) Keep() error {
	if err := t.file.Sync(); err != nil {
		return err
	}
	c := t.cache
	path := c.plainPath(t.name)
	c.mu.Lock()
	err := os.Rename(t.path, path)
	if err == nil {
		t.kept = true
		c.used -= t.size
		c.drafts -= t.size
		c.replacePlain(&entry{plain: t.name, size: t.size})
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// replacePlain adds an entry for a file that may have taken the place of another; mu is held.
func (c *Cache) replacePlain(e *entry) {
	if old := c.plain[e.plain]; old != nil {
		c.remove(old)
	}
	c.insert(e)
}

// Close gives the Draft back, and its space if it was not kept.
func (t *Draft) Close() error {
	err := t.file.Close()
	if t.kept {
		return err
	}
	t.cache.mu.Lock()
	t.cache.used -= t.size
	t.cache.drafts -= t.size
	t.cache.mu.Unlock()
	return errors.Join(err, os.Remove(t.path))
}

// Manifest returns a manifest that is kept, verified, or ErrNotFound; a damaged one is removed, logged, and not found.
func (c *Cache) Manifest(d digest.Digest) (mediaType string, body []byte, err error) {
	if err := d.Validate(); err != nil {
		return "", nil, fmt.Errorf("manifest %.80q: %w: %w", d, err, blockfmt.ErrUnsupported)
	}
	name := plainFileOf("manifests", d)
	f, err := c.openPlain(name)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 2*blockfmt.MaxManifestSize))
	if err != nil {
		return "", nil, err
	}
	kind, body, _ := bytes.Cut(text, []byte("\n"))
	if d.Algorithm().FromBytes(body) != d {
		c.mu.Lock()
		e := c.plain[name]
		c.mu.Unlock()
		if e != nil {
			c.dropPlain(e, blockfmt.ErrCorrupt)
		}
		return "", nil, fmt.Errorf("manifest %s in cache is damaged: %w", d, blockfmt.ErrNotFound)
	}
	return string(kind), body, nil
}

// KeepManifest keeps a manifest whose digest the caller has checked.
func (c *Cache) KeepManifest(d digest.Digest, mediaType string, body []byte) error {
	if err := d.Validate(); err != nil || strings.Contains(mediaType, "\n") {
		return fmt.Errorf("manifest %.80q of type %.80q: %w: %w", d, mediaType, err, blockfmt.ErrUnsupported)
	}
	text := append([]byte(mediaType+"\n"), body...)
	size := int64(len(text))
	if !c.makeRoom(size) {
		return fmt.Errorf("no room for %d bytes of manifest %s: all of the budget is in use", size, d)
	}
	tmp, name := c.tmp(), plainFileOf("manifests", d)
	// No fsync: a manifest that a loss of power tore is told by its digest.
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := os.Rename(tmp, c.plainPath(name)); err != nil {
		return err
	}
	c.replacePlain(&entry{plain: name, size: size})
	return nil
}

// findPlain lists the files in "plain" or "manifests", and removes what does not belong there.
func (c *Cache) findPlain(dir string) ([]found, error) {
	files, err := os.ReadDir(c.path(dir))
	if err != nil {
		return nil, err
	}
	var all []found
	for _, f := range files {
		name := plainFile(filepath.Join(dir, f.Name()))
		info, err := f.Info()
		if _, _, err2 := name.digest(); err != nil || err2 != nil || !info.Mode().IsRegular() {
			_ = os.RemoveAll(c.plainPath(name))
			continue
		}
		all = append(all, found{&entry{plain: name, size: info.Size()}, info.ModTime()})
	}
	return all, nil
}

// plain hashes a plain blob or a manifest, and removes it if it is damaged.
func (s *scrubber) plain(e *entry) error {
	s.report.Plain++
	err := s.hashPlain(e)
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) && !s.present(e) {
		return nil
	}
	s.report.BadPlain++
	s.cache.dropPlain(e, err)
	return nil
}

func (s *scrubber) hashPlain(e *entry) error {
	f, err := os.Open(s.cache.plainPath(e.plain))
	if err != nil {
		return err
	}
	defer f.Close()
	dir, d, err := e.plain.digest()
	if err != nil {
		return err
	}
	verifier, skip := d.Verifier(), dir == "manifests"
	buf := make([]byte, blockfmt.BlockSize)
	for {
		n, err := f.Read(buf)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = s.pace(int64(n))
		}
		if err != nil {
			return err
		}
		part := buf[:n]
		if skip { // the line with the media type, in the first bytes
			_, part, _ = bytes.Cut(part, []byte("\n"))
			skip = false
		}
		_, _ = verifier.Write(part) // a hash
	}
	if !verifier.Verified() {
		return fmt.Errorf("bytes do not match the digest: %w", blockfmt.ErrCorrupt)
	}
	return nil
}
