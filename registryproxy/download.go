package registryproxy

import (
	"context"
	"fmt"
	"hash"
	"slices"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// download is one blob on its way to this node: the file it arrives in, and who waits for what of it. It is the Sink of its
// Source.
type download struct {
	blob Blob
	file File

	hashing sync.Mutex // guards hash and prefix: taken before mu
	hash    hash.Hash
	prefix  int // blocks that went into hash

	mu       sync.Mutex // guards what follows
	have     []bool
	left     int           // blocks that are not here
	changed  chan struct{} // closed and replaced when anything of this does
	waiting  []wait        // for blocks, in the order of their coming
	ways     []Blob
	verified bool
	err      error // why no more comes for now
	final    bool  // for good
	running  bool  // its goroutine
	users    int   // contents and the goroutine; the last closes file
}

type wait struct {
	content *arriving
	block   int
}

// maxWays bounds the credentials that are remembered for one download.
const maxWays = 16

func newDownload(b Blob, file File) *download {
	return &download{blob: b, file: file, hash: b.Digest.Algorithm().Hash(), have: make([]bool, b.Blocks()), left: b.Blocks(),
		changed: make(chan struct{}), ways: []Blob{b}}
}

// notify wakes all who wait; mu is held.
func (d *download) notify() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// addWay notes one more client that may have the blob.
func (d *download) addWay(b Blob) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Contains(d.ways, b) {
		return
	}
	if len(d.ways) == maxWays { // older tokens expire sooner
		d.ways = slices.Delete(d.ways, 0, 1)
	}
	d.ways = append(d.ways, b)
}

func (d *download) fetch(avoid []string) Fetch {
	d.mu.Lock()
	defer d.mu.Unlock()
	ways := slices.Clone(d.ways)
	slices.Reverse(ways) // the youngest token first
	return Fetch{Digest: d.blob.Digest, Size: d.blob.Size, Ways: ways, Avoid: avoid}
}

// Gap implements Sink.
func (d *download) Gap(from int) (first, end int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for first = max(0, from); first < len(d.have) && d.have[first]; first++ {
	}
	for end = first; end < len(d.have) && !d.have[end]; end++ {
	}
	return first, end
}

// Wanted implements Sink.
func (d *download) Wanted() (int, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waiting {
		if !d.have[w.block] {
			return w.block, true
		}
	}
	return 0, false
}

// Write implements Sink.
func (d *download) Write(block int, data []byte) error {
	off, n := d.blob.Block(block)
	if block < 0 || n <= 0 || int64(len(data)) != n {
		return fmt.Errorf("block %d of %s: %d bytes: %w", block, d.blob.Digest, len(data), blockfmt.ErrCorrupt)
	}
	d.mu.Lock()
	known := d.have[block]
	d.mu.Unlock()
	if known {
		return nil
	}
	if _, err := d.file.WriteAt(data, off); err != nil {
		return err
	}
	d.mu.Lock()
	if !d.have[block] {
		d.have[block] = true
		d.left--
		d.notify()
	}
	d.mu.Unlock()
	return d.advance(block, data)
}

// Has implements Sink.
func (d *download) Has(block int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return block >= 0 && block < len(d.have) && d.have[block]
}

// ReadAt implements Sink.
func (d *download) ReadAt(p []byte, off int64) (int, error) { return d.file.ReadAt(p, off) }

// advance hashes what follows the bytes that are hashed: the block that has just arrived, and those that came before their turn.
func (d *download) advance(block int, data []byte) error {
	d.hashing.Lock()
	defer d.hashing.Unlock()
	if d.prefix != block {
		return nil
	}
	d.hash.Write(data)
	d.prefix++
	return d.catchUp()
}

// catchUp hashes blocks that are here, up to the first one that is not; hashing is held.
func (d *download) catchUp() error {
	var buf []byte
	for first, _ := d.Gap(d.prefix); d.prefix < first; d.prefix++ {
		if buf == nil {
			buf = make([]byte, blockfmt.BlockSize)
		}
		off, n := d.blob.Block(d.prefix)
		if _, err := d.file.ReadAt(buf[:n], off); err != nil {
			return err
		}
		d.hash.Write(buf[:n])
	}
	return nil
}

// verify compares the digest once all blocks are here. Right or wrong, it is the end of this download.
func (d *download) verify() error {
	d.hashing.Lock()
	defer d.hashing.Unlock()
	if err := d.catchUp(); err != nil { // what another Write has not hashed yet
		return err
	}
	if d.prefix < len(d.have) {
		return fmt.Errorf("blob %s: %d of %d blocks came: %w", d.blob.Digest, d.prefix, len(d.have), blockfmt.ErrTransient)
	}
	sum := fmt.Sprintf("%x", d.hash.Sum(nil))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.verified = sum == d.blob.Digest.Encoded()
	d.notify()
	if !d.verified {
		return fmt.Errorf("blob %s: got other bytes: %w", d.blob.Digest, blockfmt.ErrCorrupt)
	}
	return nil
}

// fail tells all readers that no more comes for now, or for good.
func (d *download) fail(err error, final bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.final, d.running = err, final, false
	d.notify()
}

// start reports whether the caller is to run the download, because nobody does.
func (d *download) start() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running || d.verified || d.final {
		return false
	}
	d.running, d.err = true, nil
	d.users++
	return true
}

// isRunning says whether somebody fetches.
func (d *download) isRunning() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running
}

// open returns one more reader's view.
func (d *download) open() *arriving {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.users++
	return &arriving{d}
}

// release gives up one use of the file.
func (d *download) release() error {
	d.mu.Lock()
	d.users--
	last := d.users == 0
	d.mu.Unlock()
	if last {
		return d.file.Close()
	}
	return nil
}

// usable returns how many bytes from off on may be read: those of blocks that are here, the last block only after the whole
// was verified. mu is held.
func (d *download) usable(off int64) (n int64) {
	for i := int(off / blockfmt.BlockSize); i < len(d.have) && d.have[i] && (d.verified || i < len(d.have)-1); i++ {
		start, size := d.blob.Block(i)
		n = start + size - off
	}
	return n
}

// arriving is a download's Content.
type arriving struct{ d *download }

// Ready implements Content.
func (a *arriving) Ready(ctx context.Context, off int64) (int64, error) {
	d := a.d
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.forget(a)
	for first := true; ; first = false {
		switch n := d.usable(off); {
		case d.final && d.err != nil:
			return 0, d.err
		case n > 0:
			return n, nil
		case d.err != nil:
			return 0, d.err
		}
		if first {
			d.waiting = append(d.waiting, wait{a, int(off / blockfmt.BlockSize)})
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
			d.mu.Lock()
		case <-ctx.Done():
			d.mu.Lock()
			return 0, ctx.Err()
		}
	}
}

// forget takes a reader out of those who wait; mu is held.
func (d *download) forget(a *arriving) {
	d.waiting = slices.DeleteFunc(d.waiting, func(w wait) bool { return w.content == a })
}

// ReadAt implements Content.
func (a *arriving) ReadAt(p []byte, off int64) (int, error) { return a.d.file.ReadAt(p, off) }

// Close implements Content.
func (a *arriving) Close() error { return a.d.release() }

var _ Sink = (*download)(nil)
