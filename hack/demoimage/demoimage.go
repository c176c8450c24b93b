package demoimage

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"
)

//go:embed build.sh
var buildScript []byte

//go:embed fit.py
var program []byte

// Tag of the image in its layout.
const Tag = "demo"

// packages of each layer over Debian's minimal system and below the program's layer.
var packages = []string{
	"python3",
	"python3-numpy python3-scipy",
	"python3-pandas python3-sklearn python3-matplotlib python3-sympy",
}

// Image is a built demo image. Its directories are shared by all users of the cache: read only.
type Image struct {
	Layout   string   `json:"-"`        // directory of the OCI layout, with the tag Tag
	Rootfs   string   `json:"-"`        // directory of the same tree as plain files
	Command  []string `json:"-"`        // what its entrypoint runs
	Layers   int      `json:"layers"`   // source layers
	Stored   int64    `json:"stored"`   // bytes of the compressed layers
	Unpacked int64    `json:"unpacked"` // bytes of the layers' tar streams
}

// Image reads the image from its layout.
func (i *Image) Image() (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(i.Layout)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range manifest.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == Tag {
			return index.Image(d.Digest)
		}
	}
	return nil, fmt.Errorf("layout %s has no tag %s", i.Layout, Tag)
}

// Python returns the image's first two layers, Debian and Python: a fifth of it, with the same interpreter. Its entrypoint is a small program.
func (i *Image) Python() (v1.Image, error) {
	whole, err := i.Image()
	if err != nil {
		return nil, err
	}
	layers, err := whole.Layers()
	if err != nil {
		return nil, err
	}
	config, err := whole.ConfigFile()
	if err != nil {
		return nil, err
	}
	small, err := mutate.AppendLayers(empty.Image, layers[:2]...)
	if err != nil {
		return nil, err
	}
	file, err := small.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = config.OS, config.Architecture, *config.Config.DeepCopy()
	file.Config.Entrypoint = []string{"python3", "-c", pythonProgram}
	return mutate.ConfigFile(small, file)
}

// pythonProgram imports a good part of Python's library and prints a line.
const pythonProgram = "import asyncio, csv, ctypes, decimal, email.message, http.server, json, logging, sqlite3, ssl, unittest, urllib.request, xml.dom.minidom, zipfile; " +
	"import sys; print('ready', sys.version.split()[0], ssl.OPENSSL_VERSION, len(sys.modules), 'modules', flush=True)"

// Build returns the image from the cache directory, building it there first, in some minutes, unless that has been done
// for the same recipe. It needs root, mmdebstrap, umoci and apt's package lists; log gets a line per step. Builders on one
// directory wait for each other. An interrupted build leaves files that the next one removes, no mount and no process.
func Build(ctx context.Context, cache string, log io.Writer) (*Image, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(cache, "demo-image.lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	sources, err := aptSources(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "demo-image-"+recipe(sources.release))
	image, err := open(dir)
	if !errors.Is(err, os.ErrNotExist) {
		return image, err
	}
	old, err := filepath.Glob(filepath.Join(cache, "demo-image-*"))
	if err != nil {
		return nil, err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return nil, fmt.Errorf("remove outdated demo image: %w", err)
		}
	}
	if err := build(ctx, dir, sources, log); err != nil {
		return nil, fmt.Errorf("build demo image: %w", err)
	}
	return open(dir)
}

// open reads what a finished build left; os.ErrNotExist if there is none.
func open(dir string) (*Image, error) {
	text, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return nil, err
	}
	image := &Image{Layout: filepath.Join(dir, "layout"), Rootfs: filepath.Join(dir, "rootfs"), Command: []string{"/usr/bin/python3", "/app/fit.py"}}
	if err := json.Unmarshal(text, image); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return image, nil
}

// build makes dir under a temporary name, so that it appears whole or not at all.
func build(ctx context.Context, dir string, sources aptSource, log io.Writer) error {
	work := dir + ".tmp"
	defer os.RemoveAll(work)
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{"build.sh": buildScript, "fit.py": program, "sources.list": sources.lines}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(work, name), data, 0o644); err != nil {
			return err
		}
	}
	// The namespaces end with the builder, whatever ends it: no mount and no process is left.
	args := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", filepath.Join(work, "build.sh"), work, filepath.Join(work, "sources.list"), sources.release, filepath.Join(work, "fit.py")}
	cmd := exec.CommandContext(ctx, "unshare", append(args, packages...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("build.sh: %w", err))
	}
	return finish(work, dir)
}

// finish measures the image, drops the build's other files and gives the result its name.
func finish(work, dir string) error {
	if err := os.Rename(filepath.Join(work, "bundle/rootfs"), filepath.Join(work, "rootfs")); err != nil {
		return err
	}
	image := &Image{Layout: filepath.Join(work, "layout")}
	if err := image.measure(); err != nil {
		return err
	}
	text, err := json.Marshal(image)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "image.json"), text, 0o644); err != nil {
		return err
	}
	keep := []string{"layout", "rootfs", "image.json"}
	entries, err := os.ReadDir(work)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(keep, e.Name()) {
			if err := os.RemoveAll(filepath.Join(work, e.Name())); err != nil {
				return err
			}
		}
	}
	unix.Sync() // a name after a crash means that what it names is whole
	return os.Rename(work, dir)
}

// measure fills in the sizes by reading every layer.
func (i *Image) measure() error {
	image, err := i.Image()
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		stored, err := l.Compressed()
		if err != nil {
			return err
		}
		n, unpacked, err := gunzipSize(stored)
		if err := errors.Join(err, stored.Close()); err != nil {
			return err
		}
		i.Layers++
		i.Stored += n
		i.Unpacked += unpacked
	}
	return nil
}

func gunzipSize(r io.Reader) (stored, unpacked int64, err error) {
	count := &counter{r: r}
	z, err := gzip.NewReader(bufio.NewReaderSize(count, 1<<20))
	if err != nil {
		return 0, 0, err
	}
	unpacked, err = io.Copy(io.Discard, z)
	return count.n, unpacked, err
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// recipe names everything of ours that decides what the image contains. The state of the mirrors is not in it: a built
// image stays until the recipe changes.
func recipe(release string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n%q\n%q\n%q\n", release, runtime.GOARCH, packages, buildScript, program)
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// lock waits for the lock file at path, until ctx ends.
func lock(ctx context.Context, path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
}

// aptSource is the distribution of this machine as its own package manager gets it.
type aptSource struct {
	release string // code name
	lines   []byte // in the format of sources.list
}

// aptSources asks apt for the distribution's mirrors, leaving out what other vendors' sources this machine has.
func aptSources(ctx context.Context) (aptSource, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format",
		"$(ORIGIN) $(RELEASE) deb $(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return aptSource{}, fmt.Errorf("apt-get indextargets: %w", err)
	}
	var s aptSource
	var lines []string
	for line := range strings.Lines(string(out)) {
		f := strings.SplitN(line, " ", 3)
		if len(f) < 3 || (f[0] != "Debian" && f[0] != "Ubuntu") || slices.Contains(lines, f[2]) {
			continue
		}
		lines = append(lines, f[2])
		if s.release == "" {
			s.release = f[1]
		}
	}
	if len(lines) == 0 {
		return aptSource{}, errors.New("apt knows no Debian or Ubuntu package lists: run apt-get update")
	}
	s.lines = []byte(strings.Join(lines, ""))
	return s, nil
}
