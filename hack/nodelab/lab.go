package nodelab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/containerdtest"
)

// Config of a Lab.
type Config struct {
	// Xylem is the path of the binary under test. Default "bin/xylem".
	Xylem string
	// Dir is where the lab makes its temporary directory, in which the paths of sockets must stay short. Default /var/tmp.
	Dir string
	// Log gets a line for each step. Default: none.
	Log io.Writer
	// Place is where the registry and the converter run. Default: this machine.
	Place Place
	// Listen is the registry's address there. Default: a loopback port of the kernel's choice.
	Listen string
}

// Lab is a registry on loopback and a directory for everything else. Close ends it.
type Lab struct {
	dir      string // all of the lab's files but the registry's blobs
	storage  string // the registry's blobs: another machine's disk in real life, so in memory if there is enough
	xylem    string
	log      io.Writer
	place    Place
	registry *registry
	lock     *os.File     // held while the lab lives
	nodes    atomic.Int32 // ever started
}

// withDefaults fills in the defaults that the fields name.
func (cfg Config) withDefaults() Config {
	if cfg.Xylem == "" {
		cfg.Xylem = "bin/xylem"
	}
	if cfg.Dir == "" {
		cfg.Dir = "/var/tmp"
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if cfg.Place == nil {
		cfg.Place = here{}
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	return cfg
}

// Start makes a lab and removes what labs that were killed left behind.
func Start(ctx context.Context, cfg Config) (*Lab, error) {
	cfg = cfg.withDefaults()
	xylem, err := filepath.Abs(cfg.Xylem)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(xylem); err != nil {
		return nil, fmt.Errorf("%w: run make build first", err)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("containers and mounts need root")
	}
	l := &Lab{xylem: xylem, log: cfg.Log, place: cfg.Place}
	if err := l.makeDirs(cfg.Dir); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if l.registry, err = l.startRegistry(ctx, cfg.Listen); err != nil {
		return nil, errors.Join(fmt.Errorf("registry: %w", err), l.Close())
	}
	if err := l.makeKey(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

const (
	dirPattern = "xylem-lab-"
	lockName   = "lock"
)

func (l *Lab) makeDirs(parent string) (err error) {
	if err := RemoveStale(parent); err != nil {
		return err
	}
	if l.dir, l.lock, err = lockedDir(parent); err != nil {
		return err
	}
	memory := "/dev/shm"
	l.storage = filepath.Join(l.dir, "registry")
	if haveMemory(memory) {
		// Not locked itself: it belongs to the directory on disk and is removed with that one.
		l.storage = filepath.Join(memory, filepath.Base(l.dir))
		if err := os.Symlink(l.storage, filepath.Join(l.dir, "registry")); err != nil {
			return err
		}
	}
	return os.Mkdir(l.storage, 0o700)
}

// lockedDir makes a directory whose lock file says that its owner lives.
func lockedDir(parent string) (string, *os.File, error) {
	dir, err := os.MkdirTemp(parent, dirPattern)
	if err != nil {
		return "", nil, err
	}
	lock, err := os.Create(filepath.Join(dir, lockName))
	if err != nil {
		return dir, nil, err
	}
	return dir, lock, unix.Flock(int(lock.Fd()), unix.LOCK_EX)
}

// RemoveStale removes the directories in parent of labs that were killed, the registry's blobs elsewhere, and what
// containerd left. Their processes must have ended.
func RemoveStale(parent string) error {
	dirs, err := filepath.Glob(filepath.Join(parent, dirPattern+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, lockName))
		if err != nil {
			continue // just being made, or the blobs of one on disk
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, removeDir(dir))
		}
		lock.Close()
	}
	return errors.Join(errs...)
}

// removeDir removes a lab's directory, what is mounted in it, and its registry's blobs elsewhere.
func removeDir(dir string) error {
	daemons, err := filepath.Glob(filepath.Join(dir, "*", containerdDir))
	if err != nil {
		return err
	}
	for _, d := range daemons {
		if err := containerdtest.Clean(d); err != nil {
			return err
		}
	}
	if err := containerdtest.UnmountBelow(dir); err != nil {
		return err
	}
	if storage, err := os.Readlink(filepath.Join(dir, "registry")); err == nil {
		if err := os.RemoveAll(storage); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// haveMemory says whether dir is a memory file system with room for the demo image in two forms, beside what the
// measurements need.
func haveMemory(dir string) bool {
	const need = 8 << 30
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return false
	}
	return fs.Type == unix.TMPFS_MAGIC && fs.Bavail*uint64(fs.Bsize) > need && availableMemory() > need
}

// availableMemory is what programs can still get, in bytes; 0 if the kernel does not say.
func availableMemory() (bytes int64) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &bytes); n == 1 {
			return bytes << 10
		}
	}
	return 0
}

// Close ends the registry and removes everything. The nodes must have been closed.
func (l *Lab) Close() error {
	var errs []error
	if l.registry != nil {
		errs = append(errs, l.registry.process.Stop())
	}
	if l.dir != "" {
		errs = append(errs, removeDir(l.dir))
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// makeKey makes the converter's configuration and its key, which every node of the lab trusts.
func (l *Lab) makeKey(ctx context.Context) error {
	config := fmt.Sprintf("root = %q\n%s", l.Path("converter"), l.registryConfig())
	if err := os.WriteFile(l.converterConfig(), []byte(config), 0o600); err != nil {
		return err
	}
	public, err := l.Run(ctx, "key")
	if err != nil {
		return err
	}
	return os.WriteFile(l.publicKey(), []byte(public), 0o600)
}

func (l *Lab) publicKey() string       { return l.Path("converter.pub") }
func (l *Lab) converterConfig() string { return l.Path("converter.toml") }

// registryConfig is the part of a configuration file that makes the registry known, which may be on no loopback address.
func (l *Lab) registryConfig() string {
	return fmt.Sprintf("[registries.%q]\nplain_http = true\n", l.Host())
}

// Host of the registry, as host:port.
func (l *Lab) Host() string { return l.registry.host }

// Path returns the path of a file or directory of the caller's in the lab's directory.
func (l *Lab) Path(name string) string { return filepath.Join(l.dir, name) }

// Push puts an image into the registry and returns its reference.
func (l *Lab) Push(ctx context.Context, repository string, image v1.Image) (string, error) {
	ref := l.Host() + "/" + repository
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		return "", err
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = l.place.DialContext
	defer transport.CloseIdleConnections()
	if err := remote.Write(tag, image, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref, nil
}

// Run runs the xylem command to its end and returns its stdout, with the converter's root and key.
func (l *Lab) Run(ctx context.Context, args ...string) (string, error) {
	return output(l.place, l.command(ctx, args...))
}

func (l *Lab) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, l.xylem, append([]string{"--config", l.converterConfig(), "--log-level", "warn"}, args...)...)
}

// Conversion is what a conversion cost.
type Conversion struct {
	Time time.Duration
	RSS  int64 // bytes, at its highest
}

// Convert makes the block image of ref with `xylem convert`, from nothing: no layer converted earlier is used.
func (l *Lab) Convert(ctx context.Context, ref string, args ...string) (Conversion, error) {
	layers, err := os.MkdirTemp(l.dir, "layers-")
	if err != nil {
		return Conversion{}, err
	}
	defer os.RemoveAll(layers)
	return l.Reconvert(ctx, ref, layers, args...)
}

// Reconvert is Convert with the converted layers kept in a directory for the next one.
func (l *Lab) Reconvert(ctx context.Context, ref, layers string, args ...string) (Conversion, error) {
	cmd := l.command(ctx, append([]string{"convert", ref, "--cache", layers}, args...)...)
	begin := time.Now()
	if _, err := output(l.place, cmd); err != nil {
		return Conversion{}, err
	}
	usage, _ := cmd.ProcessState.SysUsage().(*unixRusage)
	return Conversion{Time: time.Since(begin), RSS: usage.Maxrss << 10}, nil
}
