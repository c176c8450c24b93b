package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/nodelab"
)

// erofsMount is a native EROFS image of the same tree, in a local file, mounted by the kernel.
type erofsMount struct{ dir string }

func mountNative(ctx context.Context, rootfs, work string) (*erofsMount, error) {
	image, dir := filepath.Join(work, "native.erofs"), filepath.Join(work, "native")
	if out, err := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", image, rootfs).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	unix.Sync()
	if err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", image, err)
	}
	return &erofsMount{dir}, nil
}

func (m *erofsMount) close() error { return unix.Unmount(m.dir, 0) }

// readTree reads every file below dir, one after the other, and returns how long it took and how many bytes it read.
func readTree(dir string) (time.Duration, int64, error) {
	begin := time.Now()
	buf := make([]byte, 128<<10)
	var total int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n, err := readFile(path, buf)
		total += n
		return err
	})
	return time.Since(begin), total, err
}

func readFile(path string, buf []byte) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var total int64
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// samples of reading the whole tree, in seconds.
type readSamples struct{ cold, warm []float64 }

func (s *readSamples) measure(dir string, want int64) error {
	if err := nodelab.DropCaches(); err != nil {
		return err
	}
	for _, samples := range []*[]float64{&s.cold, &s.warm} {
		took, n, err := readTree(dir)
		if err != nil {
			return err
		}
		if n != want {
			return fmt.Errorf("%s: read %d bytes, want %d", dir, n, want)
		}
		*samples = append(*samples, took.Seconds())
	}
	return nil
}

// reads measures a node that reads the whole image: its memory after the first time, when everything comes from the
// registry, and then its speed with all blocks on local disk, against a native EROFS image. Both on the mount on which the
// blocks arrived and on a new one.
func (b *bench) reads(ctx context.Context) (err error) {
	native, err := mountNative(ctx, b.image.Rootfs, b.lab.Path(""))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, native.close()) }()
	_, size, err := readTree(native.dir)
	if err != nil {
		return err
	}
	var r nodeReads
	for range b.rounds {
		if err := b.readNode(ctx, native.dir, size, &r); err != nil {
			return err
		}
	}
	b.add(
		figures.Summary("agent_rss_read_bytes", "B", r.rss),
		figures.Summary("read_first_seconds", "s", r.first),
		figures.Summary("erofs_read_cold_seconds", "s", r.native.cold),
		figures.Summary("erofs_read_warm_seconds", "s", r.native.warm),
		figures.Ratio("read_warm_vs_erofs", r.native.warm, r.sameMount.warm),
		figures.Ratio("read_cold_vs_erofs", r.native.cold, r.sameMount.cold),
		figures.Ratio("read_warm_vs_erofs_remounted", r.nativeAgain.warm, r.newMount.warm),
		figures.Ratio("read_cold_vs_erofs_remounted", r.nativeAgain.cold, r.newMount.cold),
	)
	return nil
}

type nodeReads struct {
	rss, first                               []float64
	native, sameMount, nativeAgain, newMount readSamples
}

func (b *bench) readNode(ctx context.Context, native string, size int64, r *nodeReads) (err error) {
	node, err := b.lab.Node(ctx, nodelab.NodeConfig{Xylem: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	dir := b.lab.Path("mount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mount := func() error { _, err := node.Xylem(ctx, "mount", b.plain, dir); return err }
	unmount := func() error { _, err := node.Xylem(ctx, "unmount", dir); return err }
	if err := mount(); err != nil {
		return err
	}
	took, n, err := readTree(dir)
	if err != nil || n != size {
		return errors.Join(fmt.Errorf("first read of %d bytes, want %d", n, size), err)
	}
	rss, err := node.RSS()
	if err != nil {
		return err
	}
	r.first = append(r.first, took.Seconds())
	r.rss = append(r.rss, float64(rss))
	if err := errors.Join(r.native.measure(native, size), r.sameMount.measure(dir, size)); err != nil {
		return err
	}
	if err := errors.Join(unmount(), mount()); err != nil {
		return err
	}
	return errors.Join(r.nativeAgain.measure(native, size), r.newMount.measure(dir, size), unmount())
}
