package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// abandoned is how long the beginning of a blob that could not be had is kept for the next one who asks.
const abandoned = 10 * time.Minute

// distrusted is how long a mirror that gave wrong bytes of a blob is not asked for it.
const distrusted = 10 * time.Minute

// Downloads is Blobs on disk: each blob is fetched once, however many clients read it, and goes on to be fetched when they go
// away. Safe for concurrent use. Close it when done.
type Downloads struct {
	source Source
	store  Store
	log    *slog.Logger
	ctx    context.Context // of the downloads
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows; taken before a download's
	open   map[digest.Digest]*download
	bad    facts[digest.Digest, []string] // mirrors that gave wrong bytes of a blob
	timers map[*download]*time.Timer      // of those that nobody runs
	closed bool
}

// NewDownloads returns Downloads that get blobs from source and keep them in store. It does no I/O.
func NewDownloads(source Source, store Store, log *slog.Logger) *Downloads {
	ctx, cancel := context.WithCancel(context.Background())
	return &Downloads{source: source, store: store, log: log, ctx: ctx, cancel: cancel,
		open: map[digest.Digest]*download{}, timers: map[*download]*time.Timer{}}
}

// Close ends what is under way and waits for it. Contents should be closed before; those that are not fail from now on.
func (s *Downloads) Close() error {
	s.mu.Lock()
	s.closed = true
	left := s.open
	s.open = map[digest.Digest]*download{}
	for d, timer := range s.timers {
		timer.Stop()
		delete(s.timers, d)
	}
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	var err error
	for _, d := range left {
		d.fail(fmt.Errorf("the proxy ends: %w", blockfmt.ErrTransient), true)
		err = errors.Join(err, d.release())
	}
	return err
}

// Open implements Blobs.
func (s *Downloads) Open(_ context.Context, b Blob) (Content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("the proxy ends: %w", blockfmt.ErrTransient)
	}
	if d := s.open[b.Digest]; d != nil {
		if d.blob.Size != b.Size {
			return nil, fmt.Errorf("blob %s has %d bytes in %s/%s and %d elsewhere: %w", b.Digest, b.Size, b.Host, b.Repo, d.blob.Size, blockfmt.ErrCorrupt)
		}
		d.addWay(b)
		return s.join(d, nil), nil
	}
	file, err := s.store.Open(b.Digest)
	if err == nil {
		return newKept(file, b)
	}
	if !errors.Is(err, blockfmt.ErrNotFound) {
		s.log.Warn("kept blob cannot be opened, it is fetched again", "blob", b.Digest, "error", err)
	}
	var avoid []string
	if bad, ok := s.bad.get(b.Digest); ok && bad.age() < distrusted {
		avoid = bad.value
	}
	return s.create(b, avoid)
}

// Join opens a blob that is kept or on its way, without asking anybody for it; blockfmt.ErrNotFound if it is neither.
func (s *Downloads) Join(digest digest.Digest, size int64) (Content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Blob{Digest: digest, Size: size}
	d := s.open[digest]
	if d != nil && d.blob.Size == size && d.isRunning() {
		return d.open(), nil
	}
	file, err := s.store.Open(digest)
	if err != nil {
		return nil, err
	}
	return newKept(file, b)
}

// create begins a download; mu is held.
func (s *Downloads) create(b Blob, avoid []string) (Content, error) {
	file, err := s.store.Create(b.Digest, b.Size)
	if err != nil {
		return nil, err
	}
	d := newDownload(b, file)
	d.users = 1 // of the map
	s.open[b.Digest] = d
	return s.join(d, avoid), nil
}

// join opens a download, and runs it if nobody does; mu is held.
func (s *Downloads) join(d *download, avoid []string) Content {
	content := d.open()
	if d.start() {
		if timer := s.timers[d]; timer != nil {
			timer.Stop()
			delete(s.timers, d)
		}
		s.wg.Go(func() { s.run(d, avoid) })
	}
	return content
}

// run fetches until the blob is here, verified and kept, or cannot be had.
func (s *Downloads) run(d *download, avoid []string) {
	defer func() { s.warn(d, d.release()) }()
	from, err := s.source.Fetch(s.ctx, d.fetch(avoid), d)
	if err == nil {
		err = d.verify()
	}
	switch {
	case err == nil:
		s.warn(d, s.store.Keep(d.file))
		s.remove(d)
	case errors.Is(err, blockfmt.ErrCorrupt):
		s.log.Warn("wrong bytes of a blob are thrown away", "blob", d.blob.Digest, "from", from, "error", err)
		s.again(d, err, from, avoid)
	default:
		s.rest(d, err)
	}
}

// warn logs an error that no client gets to know.
func (s *Downloads) warn(d *download, err error) {
	if err != nil {
		s.log.Warn("blob is not kept", "blob", d.blob.Digest, "error", err)
	}
}

// remove takes a download out of the map, so that the next one who asks finds the store.
func (s *Downloads) remove(d *download) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(d)
}

func (s *Downloads) removeLocked(d *download) {
	delete(s.timers, d)
	if s.open[d.blob.Digest] == d {
		delete(s.open, d.blob.Digest)
		s.warn(d, d.release())
	}
}

// again ends a run that brought wrong bytes, and fetches them anew from others.
func (s *Downloads) again(d *download, err error, from, avoid []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.fail(err, true)
	s.removeLocked(d)
	ways := d.fetch(nil).Ways
	fresh := slices.ContainsFunc(from, func(f string) bool { return !slices.Contains(avoid, f) })
	avoid = slices.Concat(avoid, from)
	s.bad.set(d.blob.Digest, slices.DeleteFunc(slices.Clone(avoid), func(a string) bool {
		return slices.ContainsFunc(ways, func(w Blob) bool { return w.Host == a }) // the registry may be put right
	}))
	if s.closed || !fresh {
		return
	}
	content, err := s.create(ways[0], avoid)
	if err != nil {
		s.warn(d, err)
		return
	}
	for _, way := range ways[1:] {
		s.open[d.blob.Digest].addWay(way)
	}
	_ = content.Close() // the map and the goroutine use it
}

// rest ends a run that failed, and keeps what is here of the blob for a while.
func (s *Downloads) rest(d *download, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.fail(err, false)
	if first, _ := d.Gap(0); first == 0 || s.closed {
		s.removeLocked(d)
		return
	}
	s.timers[d] = time.AfterFunc(abandoned, func() { s.expire(d) })
}

// expire removes a download that nobody took up again.
func (s *Downloads) expire(d *download) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timers[d] != nil {
		s.removeLocked(d)
	}
}

// kept is the Content of a blob in the store.
type kept struct {
	file *os.File
	size int64
}

func newKept(f *os.File, b Blob) (Content, error) {
	info, err := f.Stat()
	if err == nil && info.Size() != b.Size {
		err = fmt.Errorf("blob %s has %d bytes here and %d in %s/%s: %w", b.Digest, info.Size(), b.Size, b.Host, b.Repo, blockfmt.ErrCorrupt)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &kept{f, b.Size}, nil
}

// Ready implements Content.
func (k *kept) Ready(_ context.Context, off int64) (int64, error) {
	if off >= k.size {
		return 0, fs.ErrInvalid
	}
	return k.size - off, nil
}

// File implements FileContent.
func (k *kept) File() *os.File { return k.file }

// ReadAt implements Content.
func (k *kept) ReadAt(p []byte, off int64) (int, error) { return k.file.ReadAt(p, off) }

// Close implements Content.
func (k *kept) Close() error { return k.file.Close() }
