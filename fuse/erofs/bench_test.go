package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/erofs"
)

// randomEnv makes the test binary read pages of this file in random order and print nanoseconds a read.
const randomEnv = "XYLEM_RANDOM_READ"

const randomReads = 4000

func readRandomly(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	pages := rand.New(rand.NewPCG(1, 2)).Perm(int(st.Size / 4096))[:randomReads]
	page := make([]byte, 4096)
	start := time.Now()
	for _, p := range pages {
		if _, err := unix.Pread(fd, page, int64(p)*4096); err != nil {
			return err
		}
	}
	fmt.Println(time.Since(start).Nanoseconds() / randomReads)
	return nil
}

// filled is a complete device file as a blob.
type filled struct {
	file *os.File
	size int64
}

func (f filled) Size() int64                              { return f.size }
func (f filled) File() *os.File                           { return f.file }
func (f filled) Fill(context.Context, int64, int64) error { return nil }

// benchImage is an image whose one device is a complete local file.
type benchImage struct {
	metadata, device string
	blob             filled
}

func openBenchImage(b *testing.B, metadata, device string) benchImage {
	b.Helper()
	f, err := os.Open(device)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	return benchImage{metadata, device, filled{f, info.Size()}}
}

// Benchmarks report the best run: what disturbs them on a busy machine only makes them slower.

// oneFile makes an image with one file, "file", of size bytes.
func oneFile(b *testing.B, size int64) benchImage {
	b.Helper()
	tree := metadata.Tree{Root: dir(0o755), Devices: []metadata.Device{{Size: size}}}
	tree.Root.Entries["file"] = file(size, metadata.Extent{Length: size})
	var meta bytes.Buffer
	if _, err := tree.WriteTo(&meta); err != nil {
		b.Fatal(err)
	}
	metadataPath, device := filepath.Join(b.TempDir(), "metadata"), filepath.Join(b.TempDir(), "device")
	if err := os.WriteFile(metadataPath, meta.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	out, err := os.Create(device)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	chunk := make([]byte, 1<<20)
	rnd := rand.NewChaCha8([32]byte{})
	for range size >> 20 {
		rnd.Read(chunk)
		if _, err := out.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	return openBenchImage(b, metadataPath, device)
}

// path is a way to read a bench image.
type path struct {
	name     string
	way      erofs.Way
	local    bool // the device is the local file, without FUSE
	buffered bool
	request  int // fuse.Config.MaxRequest and Spec.ReadAhead
}

func paths() []path {
	return []path{
		{"local", erofs.WayFile, true, false, 512 << 10},
		{"local-buffered", erofs.WayFile, true, true, 512 << 10},
		{"file", erofs.WayFile, false, false, 512 << 10},
		{"file-128K", erofs.WayFile, false, false, 128 << 10},
		{"file-buffered", erofs.WayFile, false, true, 512 << 10},
		{"file-buffered-128K", erofs.WayFile, false, true, 128 << 10},
		{"loop", erofs.WayLoop, false, false, 512 << 10},
		{"tree", erofs.WayTree, false, false, 512 << 10},
	}
}

// with mounts the image freshly, so that nothing of it is in EROFS's page cache, and calls use.
func (p path) with(b *testing.B, im benchImage, use func(root string)) {
	b.Helper()
	dir, target := b.TempDir(), b.TempDir()
	s, err := fuse.Mount(dir, fuse.Config{MaxRequest: p.request})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Add(0, "device", im.blob); err != nil {
		b.Fatal(err)
	}
	spec := erofs.Spec{Metadata: im.metadata, Devices: []string{s.Path("device")}, Blobs: []fuse.Blob{im.blob}, Target: target,
		Way: p.way, ReadAhead: p.request, Buffered: p.buffered}
	if p.local {
		spec.Devices = []string{im.device}
	}
	m, err := erofs.Mount(b.Context(), spec)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Unmount(b.Context())
	use(target)
}

// BenchmarkSequential reads a file of 1 GiB whose device is in the page cache.
func BenchmarkSequential(b *testing.B) {
	const size = 1 << 30
	im := oneFile(b, size)
	for _, p := range paths() {
		b.Run(p.name, func(b *testing.B) {
			best, cpu := time.Hour, time.Hour
			for b.Loop() {
				p.with(b, im, func(root string) {
					start, before := time.Now(), cpuTime(b)
					if out, err := exec.Command("dd", "if="+root+"/file", "of=/dev/null", "bs=1M").CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
					best, cpu = min(best, time.Since(start)), min(cpu, cpuTime(b)-before)
				})
			}
			b.ReportMetric(cpu.Seconds(), "server-CPU-s/GiB")
			b.ReportMetric(size/(1<<20)/best.Seconds(), "MiB/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime returns the processor time of this process, the server, so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkRandom reads 4 KiB at random places of a file whose device is in the page cache.
func BenchmarkRandom(b *testing.B) {
	im := oneFile(b, 1<<30)
	for _, p := range paths() {
		b.Run(p.name, func(b *testing.B) {
			best := math.MaxInt
			for b.Loop() {
				p.with(b, im, func(root string) {
					cmd := exec.Command("/proc/self/exe")
					cmd.Env = append(os.Environ(), randomEnv+"="+root+"/file")
					out, err := cmd.CombinedOutput()
					if err != nil {
						b.Fatalf("%v: %s", err, out)
					}
					ns, err := strconv.Atoi(strings.TrimSpace(string(out)))
					if err != nil {
						b.Fatal(err)
					}
					best = min(best, ns)
				})
			}
			b.ReportMetric(float64(best)/1000, "µs/read")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// treeImage is an image of this machine's libraries.
func treeImage(b *testing.B) benchImage {
	b.Helper()
	meta, device := filepath.Join(b.TempDir(), "metadata"), filepath.Join(b.TempDir(), "device")
	mkfs := exec.Command("mkfs.erofs", "--quiet", "--blobdev="+device, "--chunksize=4096", meta, treeSource)
	if out, err := mkfs.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return openBenchImage(b, meta, device)
}

// BenchmarkTree reads every file of an image from a cold page cache, then again from a warm one.
func BenchmarkTree(b *testing.B) {
	im := treeImage(b)
	for _, p := range paths() {
		if p.way == erofs.WayTree { // reads our own images only
			continue
		}
		b.Run(p.name, func(b *testing.B) {
			cold, warm := time.Hour, time.Hour
			for b.Loop() {
				c, w := p.readTree(b, im)
				cold, warm = min(cold, c), min(warm, w)
			}
			b.ReportMetric(cold.Seconds(), "s-cold")
			b.ReportMetric(warm.Seconds(), "s-warm")
			b.ReportMetric(float64(im.blob.size>>20), "MiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkTreeAgainstLocal reads the tree in turn from a local file and from a FUSE file and reports the median of the ratio,
// cold and warm: 1 if the FUSE file is as fast.
func BenchmarkTreeAgainstLocal(b *testing.B) {
	im := treeImage(b)
	local, file := paths()[1], paths()[2]
	var cold, warm []float64
	for b.Loop() {
		localCold, localWarm := local.readTree(b, im)
		fileCold, fileWarm := file.readTree(b, im)
		cold = append(cold, localCold.Seconds()/fileCold.Seconds())
		warm = append(warm, localWarm.Seconds()/fileWarm.Seconds())
	}
	b.Logf("cold %.2f, warm %.2f", cold, warm)
	slices.Sort(cold)
	slices.Sort(warm)
	b.ReportMetric(cold[len(cold)/2], "cold-ratio")
	b.ReportMetric(warm[len(warm)/2], "warm-ratio")
	b.ReportMetric(0, "ns/op")
}

func (p path) readTree(b *testing.B, im benchImage) (cold, warm time.Duration) {
	b.Helper()
	p.with(b, im, func(root string) {
		dropCaches(b)
		cold, warm = readAll(b, root), readAll(b, root)
	})
	return cold, warm
}

const treeSource = "/usr/lib/x86_64-linux-gnu"

func dropCaches(b *testing.B) {
	b.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		b.Fatal(err)
	}
}

func readAll(b *testing.B, root string) time.Duration {
	b.Helper()
	start := time.Now()
	if out, err := exec.Command("sh", "-c", "find "+root+" -type f -print0 | xargs -0 cat > /dev/null").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return time.Since(start)
}
