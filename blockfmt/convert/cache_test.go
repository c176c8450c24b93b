package convert_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

// some is text of n bytes that compresses a little, the same for the same seed.
func some(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz  \n01"[r.IntN(31)]
	}
	return string(b)
}

// threeLayers is an image with some megabytes in it; its top layer depends on version.
func threeLayers(t testing.TB, version string) string {
	var base []entry
	for i := range 50 {
		base = append(base, file(fmt.Sprintf("base/%d", i), some(uint64(i), 2_000*i)))
	}
	return simple(t, archive(t, base...), archive(t, file("middle", some(1000, 3<<19))), archive(t, file("top", version), file(".wh.middle", "")))
}

func TestSameBytesEveryTime(t *testing.T) {
	ref := threeLayers(t, "v1")
	cache := t.TempDir()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	want := converted(t, ref, convert.Options{Workers: 1, Key: key})
	previous := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(previous)
	for _, procs := range []int{1, 2, 7} {
		runtime.GOMAXPROCS(procs)
		for _, opts := range []convert.Options{{Workers: 1}, {Workers: 5}, {}, {CacheDir: cache}, {CacheDir: cache, Workers: 3}} {
			opts.Key = key
			got := converted(t, ref, opts)
			if !bytes.Equal(got.Manifest, want.Manifest) || !bytes.Equal(got.Companion, want.Companion) {
				t.Fatalf("GOMAXPROCS %d, %d workers, cache %q: manifest %s, before %s", procs, opts.Workers, opts.CacheDir, got.Artifact.Digest, want.Artifact.Digest)
			}
		}
	}
}

// The bytes of a conversion are a promise: blobs made by one version are shared with those of the next. If this fails because the
// format or the compressor changed, change cacheVersion too and accept that images converted before share no blocks with later ones.
func TestGoldenDigests(t *testing.T) {
	r := converted(t, threeLayers(t, "golden"), convert.Options{})
	want := []string{
		"sha256:70956d8e1efc0ee2dd369f6e23202ff101df30c1098a0996f59739f910e7c1f8",
		"sha256:3a76811665eea78e9b07d7f09b9e9bda01f0f0f0cb0d7122f1cd61caa076e536",
		"sha256:8e014644af483b92248bd449b36f1a767c076ce5a4329c8f8406c5473c9801b8",
	}
	for i, l := range r.Artifact.Layers {
		if l.Blob.Digest.String() != want[i] {
			t.Errorf("blob %d is %s, was %s", i, l.Blob.Digest, want[i])
		}
	}
}

func TestConvertsChangedLayersOnly(t *testing.T) {
	opts := convert.Options{CacheDir: t.TempDir()}
	if n := converted(t, threeLayers(t, "v1"), opts).Stats.Converted; n != 3 {
		t.Errorf("first: %d layers converted, want 3", n)
	}
	if n := converted(t, threeLayers(t, "v1"), opts).Stats.Converted; n != 0 {
		t.Errorf("again: %d layers converted, want 0", n)
	}
	r := converted(t, threeLayers(t, "v2"), opts)
	if r.Stats.Converted != 1 || !r.Stats.Layers[0].Cached || !r.Stats.Layers[1].Cached || r.Stats.Layers[2].Cached {
		t.Errorf("changed: %+v, want the last layer only", r.Stats.Layers)
	}
	if got := string(viewOf(t, r).read("top")); got != "v2" {
		t.Errorf("top is %q", got)
	}
}

func TestSameLayerTwice(t *testing.T) {
	a := archive(t, file("a", "1"), file("b", "2"))
	r := converted(t, simple(t, a, archive(t, file(".wh.a", "")), a), convert.Options{})
	if r.Stats.Converted != 2 || len(r.Artifact.Layers) != 3 || string(viewOf(t, r).read("a")) != "1" {
		t.Errorf("stats %+v", r.Stats)
	}
}

func TestEmptyLayerHasABlob(t *testing.T) {
	r := converted(t, simple(t, archive(t), archive(t, dir("d"), file("empty", ""))), convert.Options{})
	for _, l := range r.Artifact.Layers {
		if raw := deviceOf(t, r, l); len(raw) != blockfmt.PageSize {
			t.Errorf("blob of %d bytes, want one page", len(raw))
		}
	}
	if in := viewOf(t, r).inode("empty"); in.Size != 0 || len(in.Extents) != 0 {
		t.Errorf("empty file: %+v", in)
	}
}

// Whatever happened to a cached layer, the outcome is right.
func TestDamagedCacheIsConvertedAgain(t *testing.T) {
	ref := threeLayers(t, "v1")
	cache := t.TempDir()
	want := converted(t, ref, convert.Options{CacheDir: cache}).Artifact.Digest
	for name, damage := range map[string]func(path string) error{
		"blob":       func(dir string) error { return os.Truncate(filepath.Join(dir, "blob"), 10) },
		"no blob":    func(dir string) error { return os.Remove(filepath.Join(dir, "blob")) },
		"index":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "index"), []byte("x"), 0o644) },
		"metadata":   func(dir string) error { return os.Truncate(filepath.Join(dir, "metadata"), 100) },
		"info":       func(dir string) error { return os.WriteFile(filepath.Join(dir, "layer.json"), []byte("{"), 0o644) },
		"empty info": func(dir string) error { return os.WriteFile(filepath.Join(dir, "layer.json"), []byte("{}"), 0o644) },
		"no info":    func(dir string) error { return os.Remove(filepath.Join(dir, "layer.json")) },
		"stale work": func(dir string) error { return os.Mkdir(filepath.Join(filepath.Dir(dir), "work-123"), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := os.ReadDir(cache)
			must(t, err)
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), "work-") {
					must(t, damage(filepath.Join(cache, e.Name())))
					break
				}
			}
			r := converted(t, ref, convert.Options{CacheDir: cache})
			if r.Artifact.Digest != want {
				t.Errorf("got %s, want %s", r.Artifact.Digest, want)
			}
			if name != "stale work" && r.Stats.Converted != 1 {
				t.Errorf("%d layers converted, want 1", r.Stats.Converted)
			}
			viewOf(t, r).read("top")
		})
	}
}

// A conversion that dies at any moment leaves a cache that the next one can use. The test binary runs itself as the victim.
func TestKilledConversionLeavesAUsableCache(t *testing.T) {
	if dir := os.Getenv("CONVERT_VICTIM"); dir != "" {
		opts := convert.Options{CacheDir: dir, Progress: func(p convert.Progress) { fmt.Println("progress", p) }}
		_, err := convert.Convert(context.Background(), open(t, os.Getenv("CONVERT_SOURCE")), opts)
		must(t, err)
		return
	}
	ref := threeLayers(t, "v1")
	want := converted(t, ref, convert.Options{}).Artifact.Digest
	cache := t.TempDir()
	for _, after := range []int{1, 2, 4, 6, 9, 12} {
		killed(t, ref, cache, after)
	}
	r := converted(t, ref, convert.Options{CacheDir: cache})
	if r.Artifact.Digest != want {
		t.Errorf("got %s, want %s", r.Artifact.Digest, want)
	}
	must(t, r.Close())
	entries, err := os.ReadDir(cache)
	must(t, err)
	if len(entries) != 3 {
		t.Errorf("cache holds %v, want three layers", entries)
	}
}

// killed runs a conversion in a process of its own and kills it after some lines of progress.
func killed(t *testing.T, ref, cache string, after int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledConversionLeavesAUsableCache$")
	cmd.Env = append(os.Environ(), "CONVERT_VICTIM="+cache, "CONVERT_SOURCE="+ref)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewScanner(out)
	for i := 0; i < after && lines.Scan(); i++ {
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestWriteLayout(t *testing.T) {
	ref := threeLayers(t, "v1")
	r := converted(t, ref, convert.Options{})
	dir := filepath.Join(t.TempDir(), "out")
	must(t, r.WriteLayout(dir, "blocks"))
	must(t, r.WriteLayout(dir, "blocks")) // into an existing one
	must(t, converted(t, threeLayers(t, "v2"), convert.Options{}).WriteLayout(dir, "other"))
	l := &layout{t: t, dir: dir}
	index, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err)
	must(t, json.Unmarshal(index, &l.index))
	if len(l.index.Manifests) != 4 {
		t.Errorf("index lists %d manifests, want two block images and their companions", len(l.index.Manifests))
	}
	for _, d := range l.index.Manifests {
		var m ocispec.Manifest
		l.decode(d, &m)
		for _, b := range append(m.Layers, m.Config) {
			data, err := os.ReadFile(l.path(b.Digest))
			must(t, err)
			if digest.FromBytes(data) != b.Digest || int64(len(data)) != b.Size {
				t.Errorf("blob %s is wrong", b.Digest)
			}
		}
	}
	// Another implementation reads it: skopeo copies the image with all its blobs.
	cmd := exec.Command("skopeo", "copy", "--preserve-digests", "oci:"+dir+":blocks", "oci:"+filepath.Join(t.TempDir(), "copy")+":blocks")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("skopeo: %v\n%s", err, out)
	}
	if _, err := convert.Open(context.Background(), "oci:"+dir+":blocks", "", convert.Registry{}); err == nil {
		t.Error("a block image was accepted as a source")
	}
}

func TestKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "converter.pem")
	if _, err := convert.LoadKey(path); !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("no key: %v", err)
	}
	keys := make([]ed25519.PrivateKey, 8)
	var g errgroup.Group
	for i := range keys {
		g.Go(func() (err error) {
			keys[i], err = convert.GenerateKey(path)
			return err
		})
	}
	must(t, g.Wait())
	loaded, err := convert.LoadKey(path)
	must(t, err)
	for _, k := range keys {
		if !k.Equal(loaded) {
			t.Error("not everybody has the same key")
		}
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	for name, content := range map[string]string{"empty": "", "text": "hello", "pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		bad := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(bad, []byte(content), 0o600))
		if _, err := convert.GenerateKey(bad); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
