package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// fakeImages serves directories as the trees of chains and counts what is asked of it.
type fakeImages struct {
	mu       sync.Mutex
	dirs     map[digest.Digest]string
	resolves map[digest.Digest]string // directories that Resolve finds and Mount serves from then on
	fail     error                    // of Resolve and Mount
	onMount  func()                   // called by Mount without a lock

	requests  []Request
	mounted   map[digest.Digest]int // Mounts that were not given back
	calls     int                   // of Mount
	forgotten []digest.Digest
}

func newFake(dirs map[digest.Digest]string) *fakeImages {
	return &fakeImages{dirs: dirs, resolves: map[digest.Digest]string{}, mounted: map[digest.Digest]int{}}
}

func (f *fakeImages) Resolve(ctx context.Context, req Request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, req)
	if f.fail != nil {
		return f.fail
	}
	if dir, ok := f.resolves[req.ChainID]; ok {
		f.dirs[req.ChainID] = dir
	}
	if _, ok := f.dirs[req.ChainID]; !ok {
		return fmt.Errorf("no image with %s: %w", req.ChainID, blockfmt.ErrNotFound)
	}
	return nil
}

func (f *fakeImages) Mount(ctx context.Context, chainID digest.Digest) (string, error) {
	if f.onMount != nil {
		f.onMount()
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fail != nil {
		return "", f.fail
	}
	dir, ok := f.dirs[chainID]
	if !ok {
		return "", fmt.Errorf("no image with %s: %w", chainID, blockfmt.ErrNotFound)
	}
	f.mounted[chainID]++
	return dir, nil
}

func (f *fakeImages) Unmount(ctx context.Context, chainID digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mounted[chainID] == 0 {
		return fmt.Errorf("%s is not mounted", chainID)
	}
	f.mounted[chainID]--
	return ctx.Err()
}

func (f *fakeImages) Forget(ctx context.Context, chainID digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.mounted[chainID]; n > 0 {
		return fmt.Errorf("%s has %d users", chainID, n)
	}
	f.forgotten = append(f.forgotten, chainID)
	return ctx.Err()
}

// holds fails the test unless exactly n Mounts of the chain were not given back.
func (f *fakeImages) holds(t *testing.T, chainID digest.Digest, n int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mounted[chainID] != n {
		t.Errorf("%d Mounts of %s are held, want %d", f.mounted[chainID], chainID, n)
	}
}

// logBuffer collects the log of a snapshotter, one line a record.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSuffix(b.text.String(), "\n"), "\n")
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func open(t *testing.T, cfg Config, images Images) *Snapshotter {
	t.Helper()
	if cfg.Root == "" {
		cfg.Root = t.TempDir()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := Open(t.Context(), cfg, images)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// chainOf makes a chain ID of a word.
func chainOf(name string) digest.Digest { return digest.FromString(name) }

// pulled are the labels that a client sends for the layers of an image.
func pulled(ref string, chainID digest.Digest) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:             chainID.String(),
		snapshotters.TargetRefLabel:            ref,
		snapshotters.TargetManifestDigestLabel: digest.FromString(ref).String(),
		snapshotters.TargetLayerDigestLabel:    digest.FromString("layer").String(),
	})
}
