package cache_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
)

func openCache(t *testing.T, dir string, budget int64) *cache.Cache {
	t.Helper()
	c, err := cache.Open(cache.Config{Dir: dir, Budget: budget})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func plainBody(seed byte, n int) ([]byte, digest.Digest) {
	b := bytes.Repeat([]byte{seed, 1, 2, 3, 5, 7, 11}, n/7+1)[:n]
	return b, digest.FromBytes(b)
}

// draft writes a plain blob that is not kept yet.
func draft(t *testing.T, c *cache.Cache, body []byte) *cache.Draft {
	t.Helper()
	d, err := c.CreatePlain(digest.FromBytes(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	half := len(body) / 2 // blocks come in any order
	for _, off := range []int{half, 0} {
		if _, err := d.WriteAt(body[off:off+len(body)-half], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func keepPlain(t *testing.T, c *cache.Cache, body []byte) {
	t.Helper()
	d := draft(t, c, body)
	if err := errors.Join(d.Keep(), d.Close()); err != nil {
		t.Fatal(err)
	}
}

func readPlain(t *testing.T, c *cache.Cache, d digest.Digest) ([]byte, error) {
	t.Helper()
	f, err := c.OpenPlain(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func TestPlainBlobsSurviveRestarts(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, 1<<20)
	body, d := plainBody(1, 100_000)
	manifest := []byte(`{"schemaVersion":2}`)
	keepPlain(t, c, body)
	keepPlain(t, c, body) // twice is no harm
	unfinished, other := plainBody(2, 50_000)
	left := draft(t, c, unfinished)
	if err := c.KeepManifest(digest.FromBytes(manifest), "application/x", manifest); err != nil {
		t.Fatal(err)
	}
	if u := c.Usage(); u.Used != u.PlainBytes || u.PlainBytes != 100_000+50_000+int64(len(manifest)+len("application/x\n")) || u.BlockBytes != 0 {
		t.Errorf("usage %+v", u)
	}
	_ = left // its process dies
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, dir, 1<<20)
	if got, err := readPlain(t, c, d); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := readPlain(t, c, other); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("a blob that was not whole: %v", err)
	}
	if kind, got, err := c.Manifest(digest.FromBytes(manifest)); err != nil || kind != "application/x" || !bytes.Equal(got, manifest) {
		t.Errorf("manifest %q %q, %v", kind, got, err)
	}
	if u := c.Usage(); u.Used != 100_000+int64(len(manifest)+len("application/x\n")) {
		t.Errorf("usage %+v", u)
	}
	if list := c.List(); len(list) != 1 || list[0] != (cache.BlobInfo{Blob: d, Size: 100_000, Valid: 100_000, Complete: true, Plain: true}) {
		t.Errorf("list %+v", list)
	}
	if tmp, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(tmp) != 0 {
		t.Errorf("tmp holds %v, %v", tmp, err)
	}
}

func TestDraftsGiveTheirSpaceBack(t *testing.T) {
	c := openCache(t, t.TempDir(), 1<<20)
	body, d := plainBody(1, 100_000)
	a := draft(t, c, body)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.OpenPlain(d); !errors.Is(err, blockfmt.ErrNotFound) || c.Used() != 0 {
		t.Errorf("%v, %d bytes used", err, c.Used())
	}
	b := draft(t, c, body)
	if err := b.Keep(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(body))
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("a draft that is kept cannot be read: %v", err)
	}
	if err := b.Close(); err != nil || c.Used() != 100_000 {
		t.Errorf("%v, %d bytes used", err, c.Used())
	}
}

// TestPlainBlobsShareTheBudget: what is not read gives way, whatever it is; what is open stays readable.
func TestPlainBlobsShareTheBudget(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, 1000)
	var digests []digest.Digest
	for i := range 10 {
		body, d := plainBody(byte(i), 100)
		keepPlain(t, c, body)
		digests = append(digests, d)
	}
	first, err := c.OpenPlain(digests[0]) // visited
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	evicted, err := c.OpenPlain(digests[1])
	if err != nil {
		t.Fatal(err)
	}
	defer evicted.Close()
	stored := bytes.Repeat([]byte{42}, 450)
	ref := blockfmt.Ref{ID: blockfmt.IDOf(stored), Length: 450, RawLength: 450}
	if err := c.Put(t.Context(), ref, stored); err != nil {
		t.Fatal(err)
	}
	if c.Used() > 1000 || !c.Has(ref) {
		t.Errorf("%d bytes used, block kept: %v", c.Used(), c.Has(ref))
	}
	if _, err := readPlain(t, c, digests[0]); err != nil {
		t.Errorf("what was read is gone: %v", err)
	}
	if _, err := readPlain(t, c, digests[2]); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("what was not read is still here: %v", err)
	}
	c.GC(0)
	if got, err := io.ReadAll(evicted); err != nil || len(got) != 100 {
		t.Errorf("what is open cannot be read: %d bytes, %v", len(got), err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, "plain")); err != nil || len(files) != 0 || c.Used() != 0 {
		t.Errorf("after GC: %d files, %d bytes used, %v", len(files), c.Used(), err)
	}
}

// TestNoRoomForPlainBlobs: drafts count from the beginning and are not evicted, so that a blob that does not fit is refused at once.
func TestNoRoomForPlainBlobs(t *testing.T) {
	c := openCache(t, t.TempDir(), 1000)
	body, _ := plainBody(1, 800)
	d := draft(t, c, body)
	defer d.Close()
	_, other := plainBody(2, 300)
	if _, err := c.CreatePlain(other, 300); err == nil || errors.Is(err, blockfmt.ErrNotFound) || errors.Is(err, blockfmt.ErrTransient) {
		t.Errorf("%v, want an error without a kind", err)
	}
	if err := c.KeepManifest(other, "", make([]byte, 300)); err == nil {
		t.Error("a manifest that does not fit is kept")
	}
}

func TestDamagedPlainFiles(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, 1<<20)
	good, goodDigest := plainBody(1, 100_000)
	bad, _ := plainBody(2, 700_000)
	manifest, manifestDigest := plainBody(3, 1000)
	keepPlain(t, c, good)
	keepPlain(t, c, bad[:300_000]) // under its own name
	for _, m := range [][]byte{manifest, []byte("{}")} {
		if err := c.KeepManifest(digest.FromBytes(m), "application/x", m); err != nil {
			t.Fatal(err)
		}
	}
	damage := func(path string) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("x"), 20); err != nil {
			t.Fatal(err)
		}
	}
	badDigest := digest.FromBytes(bad[:300_000])
	damage(filepath.Join(dir, "plain", strings.Replace(badDigest.String(), ":", "-", 1)))
	damage(filepath.Join(dir, "manifests", strings.Replace(manifestDigest.String(), ":", "-", 1)))
	if _, _, err := c.Manifest(manifestDigest); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("damaged manifest: %v", err)
	}
	report, err := c.Scrub(t.Context(), 0)
	if err != nil || report.Plain != 3 || report.BadPlain != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if _, err := readPlain(t, c, badDigest); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("damaged blob: %v", err)
	}
	if got, err := readPlain(t, c, goodDigest); err != nil || !bytes.Equal(got, good) {
		t.Errorf("sound blob: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "plain", strings.Replace(goodDigest.String(), ":", "-", 1))); err != nil {
		t.Fatal(err)
	}
	if _, err := readPlain(t, c, goodDigest); !errors.Is(err, blockfmt.ErrNotFound) || c.Usage().PlainBytes > 100 {
		t.Errorf("blob that somebody removed: %v, %+v", err, c.Usage())
	}
}

// TestForeignFilesAreRemoved: what is not named by a digest does not belong there.
func TestForeignFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	openCache(t, dir, 1<<20).Close()
	hex := strings.Repeat("ab", 32)
	for _, name := range []string{"plain/x", "plain/sha256-" + hex[1:], "plain/sha256-" + strings.ToUpper(hex), "manifests/.tmp", "manifests/md5-" + hex[:32]} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "plain", "sha256-"+hex), 0o700); err != nil {
		t.Fatal(err)
	}
	c := openCache(t, dir, 1<<20)
	if c.Used() != 0 {
		t.Errorf("%d bytes used", c.Used())
	}
	for _, sub := range []string{"plain", "manifests"} {
		if files, err := os.ReadDir(filepath.Join(dir, sub)); err != nil || len(files) != 0 {
			t.Errorf("%s holds %v, %v", sub, files, err)
		}
	}
}

// TestPlainBlobsCheckTheirNames: nothing but a digest becomes a file name.
func TestPlainBlobsCheckTheirNames(t *testing.T) {
	c := openCache(t, t.TempDir(), 1<<20)
	for _, d := range []digest.Digest{"", "sha256:../../etc/passwd", "../x:y", "sha256:abc"} {
		_, err1 := c.OpenPlain(d)
		_, err2 := c.CreatePlain(d, 1)
		_, _, err3 := c.Manifest(d)
		err4 := c.KeepManifest(d, "", nil)
		for i, err := range []error{err1, err2, err3, err4} {
			if !errors.Is(err, blockfmt.ErrUnsupported) {
				t.Errorf("%q, call %d: %v", d, i, err)
			}
		}
	}
	_, d := plainBody(1, 1)
	if _, err := c.CreatePlain(d, -1); !errors.Is(err, blockfmt.ErrUnsupported) {
		t.Errorf("negative size: %v", err)
	}
	if err := c.KeepManifest(d, "a\nb", nil); !errors.Is(err, blockfmt.ErrUnsupported) {
		t.Errorf("media type of two lines: %v", err)
	}
}
