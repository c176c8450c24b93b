// Package fusetest has what the tests of packages on the FUSE mount share: a blob that is filled lazily and on request
// badly, and a check that no mount stays behind.
package fusetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
)

// Blob is a fuse.Blob over a file that is sparse until it is asked for, page by page.
type Blob struct {
	Data  []byte       // what the file holds once it is filled
	Calls atomic.Int64 // calls of Fill
	Pages atomic.Int64 // pages written, each at most once
	file  *os.File

	mu     sync.Mutex
	filled []bool                                              // by page; guarded by mu
	before func(ctx context.Context, off, n int64) (err error) // guarded by mu; may be nil
}

// NewBlob returns a blob of random data, the same for the same size and seed.
func NewBlob(t testing.TB, size int, seed byte) *Blob {
	t.Helper()
	data := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{seed, byte(size), byte(size >> 8), byte(size >> 16)})
	if _, err := rnd.Read(data); err != nil {
		t.Fatal(err)
	}
	return BlobOf(t, data)
}

// BlobOf returns a blob that holds data.
func BlobOf(t testing.TB, data []byte) *Blob {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	return &Blob{Data: data, file: f, filled: make([]bool, (len(data)+blockfmt.PageSize-1)/blockfmt.PageSize)}
}

// Size, File and Fill make it a fuse.Blob.
func (b *Blob) Size() int64 { return int64(len(b.Data)) }

// File is the sparse file.
func (b *Blob) File() *os.File { return b.file }

// OnFill sets what happens at the start of each Fill, which fails with its error. Nil: nothing.
func (b *Blob) OnFill(f func(ctx context.Context, off, n int64) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = f
}

// Fill writes the pages that hold [off, off+n).
func (b *Blob) Fill(ctx context.Context, off, n int64) error {
	b.Calls.Add(1)
	b.mu.Lock()
	before := b.before
	b.mu.Unlock()
	if before != nil {
		if err := before(ctx, off, n); err != nil {
			return err
		}
	}
	if off < 0 || n <= 0 || off+n > b.Size() {
		return fmt.Errorf("fill %d bytes at %d of %d: %w", n, off, b.Size(), blockfmt.ErrCorrupt)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := off / blockfmt.PageSize; p*blockfmt.PageSize < off+n; p++ {
		if b.filled[p] {
			continue
		}
		start := p * blockfmt.PageSize
		if _, err := b.file.WriteAt(b.Data[start:min(start+blockfmt.PageSize, b.Size())], start); err != nil {
			return err
		}
		b.filled[p] = true
		b.Pages.Add(1)
	}
	return nil
}

// AssertUnmounted fails the test for every mount on or below dir, and takes it away.
func AssertUnmounted(t testing.TB, dir string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			t.Errorf("mount left behind: %s", line)
			unix.Unmount(fields[4], unix.MNT_FORCE)
			unix.Unmount(fields[4], unix.MNT_DETACH)
		}
	}
}

// Run runs a child process, which may read what this one serves, and returns what it printed.
func Run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, stderr.Bytes())
	}
	return out
}
