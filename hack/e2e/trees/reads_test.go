package trees

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/hack/lab"
)

// slack is how much longer than its bound a read may take for what this machine does besides.
const slack = 3 * time.Second

// pageOf reads one page of a file, as a program does that maps it: without readahead, which would ask for blocks that nobody reads.
func pageOf(path string, page int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return nil, err
	}
	data := make([]byte, blockfmt.PageSize)
	n, err := f.ReadAt(data, int64(page)*blockfmt.PageSize)
	if err == io.EOF {
		err = nil
	}
	return data[:n], err
}

// read returns an error if a page cannot be read on a host; wrong bytes fail the test at once.
func (s *spread) read(t *testing.T, h *lab.Host, page int) error {
	got, err := pageOf(s.file(h), page)
	from := page * blockfmt.PageSize
	if err == nil && !bytes.Equal(got, s.data[from:min(from+blockfmt.PageSize, len(s.data))]) {
		t.Errorf("%s read wrong bytes in page %d", h.Name, page)
	}
	return err
}

// reading is what programs see that read pages all the time.
type reading struct {
	stop chan struct{}
	wait sync.WaitGroup

	mu      sync.Mutex
	n       int
	failed  map[*lab.Host]error
	longest map[*lab.Host]time.Duration
}

// startReading reads pages of the image on hosts, in an order of their own, over and over.
func (s *spread) startReading(t *testing.T, hosts ...*lab.Host) *reading {
	r := &reading{stop: make(chan struct{}), failed: map[*lab.Host]error{}, longest: map[*lab.Host]time.Duration{}}
	for i, h := range hosts {
		pages := rand.New(rand.NewPCG(uint64(i), 1)).Perm(len(s.data) / blockfmt.PageSize)
		r.wait.Go(func() { s.keepReading(t, r, h, pages) })
	}
	t.Cleanup(r.end)
	return r
}

func (s *spread) keepReading(t *testing.T, r *reading, h *lab.Host, pages []int) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		page := pages[i%len(pages)]
		start := time.Now()
		err := s.read(t, h, page)
		took := time.Since(start)
		r.mu.Lock()
		r.n++
		r.longest[h] = max(r.longest[h], took)
		if err != nil {
			r.failed[h] = errors.Join(r.failed[h], fmt.Errorf("page %d after %v: %w", page, took, err))
		}
		r.mu.Unlock()
	}
}

// end ends the readers and waits for them.
func (r *reading) end() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.wait.Wait()
}

// bounded checks that no read took longer.
func (r *reading) bounded(t *testing.T, bound time.Duration, hosts ...*lab.Host) {
	t.Helper()
	r.end()
	t.Logf("%d reads, the longest took %v", r.n, r.longest)
	for _, h := range hosts {
		if r.longest[h] > bound {
			t.Errorf("a read on %s took %v, want at most %v", h.Name, r.longest[h], bound)
		}
	}
}

// right checks that no read failed or took longer.
func (r *reading) right(t *testing.T, bound time.Duration, hosts ...*lab.Host) {
	t.Helper()
	r.bounded(t, bound, hosts...)
	for _, h := range hosts {
		if err := r.failed[h]; err != nil {
			t.Errorf("reads on %s failed: %v\n%s", h.Name, err, h.Node.AgentLogTail())
		}
	}
}

// givenUp bounds a read of what nobody has: the kernel tries again what failed, up to twice.
const givenUp = 3*readTimeout + slack

// outcomes reads pages on all hosts at the same time, and returns what came of them, by page.
func (s *spread) outcomes(t *testing.T, wanted func(page int) bool) map[int]map[*lab.Host]error {
	var wait sync.WaitGroup
	var mu sync.Mutex
	results := map[int]map[*lab.Host]error{}
	for page := range len(s.data) / blockfmt.PageSize {
		if !wanted(page) {
			continue
		}
		of := map[*lab.Host]error{}
		results[page] = of
		for _, h := range s.Hosts() {
			wait.Go(func() {
				start := time.Now()
				err := s.read(t, h, page)
				if took := time.Since(start); took > givenUp {
					t.Errorf("page %d on %s took %v, want at most %v: %v", page, h.Name, took, givenUp, err)
				}
				mu.Lock()
				defer mu.Unlock()
				of[h] = err
			})
		}
	}
	wait.Wait()
	return results
}
