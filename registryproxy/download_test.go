package registryproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

// sourceFunc is a Source that is one function.
type sourceFunc func(ctx context.Context, f registryproxy.Fetch, sink registryproxy.Sink) ([]string, error)

func (s sourceFunc) Fetch(ctx context.Context, f registryproxy.Fetch, sink registryproxy.Sink) ([]string, error) {
	return s(ctx, f, sink)
}

// TestBlocksInAnyOrder: whatever the order in which a Source brings blocks, and however often, each reader gets the blob's bytes,
// and the last block not before all others were here.
func TestBlocksInAnyOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		blocks := rapid.IntRange(1, 4).Draw(rt, "blocks")
		size := (blocks-1)*blockfmt.BlockSize + rapid.IntRange(1, blockfmt.BlockSize).Draw(rt, "tail")
		order := rapid.Permutation(indexes(blocks)).Draw(rt, "order")
		again := rapid.SliceOfN(rapid.IntRange(0, blocks-1), 0, 3).Draw(rt, "again")
		wrong := rapid.Bool().Draw(rt, "wrong")
		body := noise(6, size)
		b := registryproxy.Blob{Digest: digest.FromBytes(body), Size: int64(size), Host: host}
		given := bytes.Clone(body)
		if wrong {
			given[rapid.IntRange(0, size-1).Draw(rt, "at")] ^= 1
		}
		synctest.Test(t, func(t *testing.T) {
			steps := make(chan int)
			source := sourceFunc(func(_ context.Context, _ registryproxy.Fetch, sink registryproxy.Sink) ([]string, error) {
				for i := range steps {
					off, n := b.Block(i)
					if err := sink.Write(i, given[off:off+n]); err != nil {
						return nil, err
					}
				}
				if first, end := sink.Gap(0); first != end {
					return nil, fmt.Errorf("blocks %d to %d are missing", first, end)
				}
				return []string{"peer"}, nil
			})
			disk := &disk{dir: t.TempDir()}
			s := registryproxy.NewDownloads(source, disk, slog.New(slog.DiscardHandler))
			content, err := s.Open(t.Context(), b)
			if err != nil {
				rt.Fatal(err)
			}
			type result struct {
				body []byte
				err  error
			}
			var have int // bytes that the reader got
			done := make(chan result, 1)
			go func() {
				var got []byte
				for len(got) < size {
					n, err := content.Ready(t.Context(), int64(len(got)))
					if err != nil {
						done <- result{got, err}
						return
					}
					part := make([]byte, n)
					if _, err := content.ReadAt(part, int64(len(got))); err != nil {
						done <- result{got, err}
						return
					}
					got = append(got, part...)
					have = len(got)
				}
				done <- result{got, nil}
			}()
			here := make([]bool, blocks)
			for _, i := range append(again, order...) {
				steps <- i
				here[i] = true
				synctest.Wait()
				prefix := 0
				for prefix < blocks-1 && here[prefix] {
					prefix++
				}
				if have != prefix*blockfmt.BlockSize {
					rt.Fatalf("the reader has %d bytes with %v here", have, here)
				}
			}
			close(steps)
			r := <-done
			switch {
			case wrong && (!errors.Is(r.err, blockfmt.ErrCorrupt) || len(r.body) == size):
				rt.Fatalf("wrong bytes: %d of %d were given, %v", len(r.body), size, r.err)
			case !wrong && (r.err != nil || !bytes.Equal(r.body, body)):
				rt.Fatalf("%d of %d bytes, %v", len(r.body), size, r.err)
			}
			if err := errors.Join(content.Close(), s.Close()); err != nil {
				rt.Fatal(err)
			}
			if kept := disk.kept == 1; kept == wrong || disk.files() != 0 {
				rt.Fatalf("kept %d, %d files open", disk.kept, disk.files())
			}
		})
	})
}

func indexes(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// TestSinksRefuseNonsense: a Source that gives blocks that do not exist or have other lengths changes nothing.
func TestSinksRefuseNonsense(t *testing.T) {
	b := registryproxy.Blob{Digest: bigDigest, Size: int64(len(big)), Host: host}
	errs := make(chan error, 10)
	source := sourceFunc(func(ctx context.Context, f registryproxy.Fetch, sink registryproxy.Sink) ([]string, error) {
		for block, n := range map[int]int{-1: blockfmt.BlockSize, 8: 1, 0: blockfmt.BlockSize - 1, 1: blockfmt.BlockSize + 1, 7: blockfmt.BlockSize} {
			errs <- sink.Write(block, make([]byte, n))
		}
		close(errs)
		if first, end := sink.Gap(0); first != 0 || end != 8 {
			t.Errorf("blocks %d to %d are missing, want all 8", first, end)
		}
		if first, end := sink.Gap(100); first != end {
			t.Errorf("gap behind the end: %d to %d", first, end)
		}
		return nil, fmt.Errorf("nothing: %w", blockfmt.ErrNotFound)
	})
	s := registryproxy.NewDownloads(source, &disk{dir: t.TempDir()}, slog.New(slog.DiscardHandler))
	content, err := s.Open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := content.Ready(t.Context(), 0); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("%v", err)
	}
	for err := range errs {
		if !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%v", err)
		}
	}
	if err := errors.Join(content.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestWaysAreTriedInTurn: when a client's token has expired, those of the others are used.
func TestWaysAreTriedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := newGated(big)
		g.let(blockfmt.BlockSize)
		g.cut[blockfmt.BlockSize] = true
		guard := &guarded{Handler: g}
		guard.let("some/image Bearer old", "some/image Bearer new")
		w.up.set(host, guard)
		replies := make(chan reply, 2)
		for _, token := range []string{"old", "new"} {
			go func() { replies <- w.get(bigPath, "Authorization: Bearer "+token) }()
			synctest.Wait()
		}
		guard.let("some/image Bearer old") // the younger one is tried first, in vain
		g.let(len(big))
		for range 2 {
			if r := <-replies; r.err != nil || !bytes.Equal(r.body, big) {
				t.Errorf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
			}
		}
		synctest.Wait()
	})
}

// TestReadersLeaveWhileTheyWait: Ready ends with its context.
func TestReadersLeaveWhileTheyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.set(host, newGated(big))
		content, err := w.blobs.Open(t.Context(), registryproxy.Blob{Digest: bigDigest, Size: int64(len(big)), Host: host, Repo: "some/image"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := content.Ready(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if err := content.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDoneAsSoonAsAllBlocksAreHere: a Source may return when there is no gap, though other goroutines of it are still in Write.
func TestDoneAsSoonAsAllBlocksAreHere(t *testing.T) {
	const blocks = 3
	body := noise(7, blocks*blockfmt.BlockSize)
	b := registryproxy.Blob{Digest: digest.FromBytes(body), Size: int64(len(body)), Host: host}
	var writers sync.WaitGroup
	source := sourceFunc(func(_ context.Context, _ registryproxy.Fetch, sink registryproxy.Sink) ([]string, error) {
		for i := range blocks {
			writers.Go(func() {
				off, n := b.Block(i)
				if err := sink.Write(i, body[off:off+n]); err != nil {
					t.Error(err)
				}
			})
		}
		for first, end := sink.Gap(0); first < end; first, end = sink.Gap(0) {
			runtime.Gosched()
		}
		return []string{"peer"}, nil
	})
	for range 200 {
		s := registryproxy.NewDownloads(source, &disk{dir: t.TempDir()}, slog.New(slog.DiscardHandler))
		content, err := s.Open(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < b.Size; {
			n, err := content.Ready(t.Context(), off)
			if err != nil {
				t.Fatal(err)
			}
			off += n
		}
		writers.Wait()
		if err := errors.Join(content.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}
