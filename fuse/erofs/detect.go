package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/fuse"
)

// Detection is what Detect found out.
type Detection struct {
	// Way is the best way that works here, 0 if none does.
	Way Way
	// Reasons says for every way why it does not work, nil for one that does.
	Reasons map[Way]error
}

// String gives one line for each way, the best first.
func (d Detection) String() string {
	var b strings.Builder
	for _, way := range Ways() {
		if err := d.Reasons[way]; err != nil {
			fmt.Fprintf(&b, "%v: %v\n", way, err)
		} else {
			fmt.Fprintf(&b, "%v: works\n", way)
		}
	}
	return b.String()
}

// Detect mounts a small image over a FUSE file in every way, reads from it and takes it away again. It needs root and a
// directory for temporary files on local disk ("": the system's). A nil log discards.
func Detect(ctx context.Context, tempDir string, log *slog.Logger) Detection {
	d := Detection{Reasons: map[Way]error{}}
	for _, way := range Ways() {
		if d.Reasons[way] = try(ctx, way, tempDir, log); d.Reasons[way] == nil && d.Way == 0 {
			d.Way = way
		}
	}
	return d
}

// probe is the content of the image's one file.
var probe = bytes.Repeat([]byte("xylem\n"), blockfmt.PageSize)

func try(ctx context.Context, way Way, tempDir string, log *slog.Logger) (err error) {
	dir, err := os.MkdirTemp(tempDir, "xylem-detect-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeEmpty(dir)) }()
	for _, name := range []string{"fuse", "tree"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	image, err := writeProbe(filepath.Join(dir, "metadata"))
	if err != nil {
		return err
	}
	device, err := os.Create(filepath.Join(dir, "device"))
	if err != nil {
		return err
	}
	defer device.Close()
	if _, err := device.Write(probe); err != nil {
		return err
	}
	server, err := fuse.Mount(filepath.Join(dir, "fuse"), fuse.Config{Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	blob := localFile{device, int64(len(probe))}
	if err := server.Add(0, "device", blob); err != nil {
		return err
	}
	return tryMount(ctx, Spec{Metadata: image, Devices: []string{server.Path("device")}, Blobs: []fuse.Blob{blob},
		Target: filepath.Join(dir, "tree"), Way: way, Log: log})
}

func tryMount(ctx context.Context, spec Spec) (err error) {
	m, err := Mount(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Unmount(context.WithoutCancel(ctx))) }()
	got, err := readPlain(filepath.Join(spec.Target, "file"), len(probe))
	if err != nil {
		return fmt.Errorf("mounted, but reading failed: %w", err)
	}
	if !bytes.Equal(got, probe) {
		return fmt.Errorf("mounted, but a file reads wrongly: %w", blockfmt.ErrCorrupt)
	}
	return nil
}

// readPlain reads a file that this process itself may serve: by plain system calls, during which the server can run.
func readPlain(path string, n int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	p := make([]byte, n)
	for done := 0; done < n; {
		got, err := unix.Pread(fd, p[done:], int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || got == 0 {
			return p[:done], err
		}
		done += got
	}
	return p, nil
}

func writeProbe(path string) (string, error) {
	size := int64(len(probe))
	tree := metadata.Tree{
		Root: &metadata.Inode{Mode: metadata.TypeDir | 0o755, Entries: map[string]*metadata.Inode{
			"file": {Mode: metadata.TypeFile | 0o444, Size: size, Extents: []metadata.Extent{{Length: size}}},
		}},
		Devices: []metadata.Device{{Size: size}},
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := tree.WriteTo(f); err != nil {
		return "", err
	}
	return path, f.Close()
}

// removeEmpty removes what try made, and nothing that is still mounted.
func removeEmpty(dir string) error {
	var errs []error
	for _, name := range []string{"fuse", "tree", "metadata", "device", ""} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
