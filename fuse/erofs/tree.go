package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
	"github.com/xylem-project/xylem/fuse"
)

// mountTree serves the tree from this process.
//
// The reader is blockfmt/metadata's, not go-erofs's: that one has no names that are not UTF-8 (io/fs forbids them), and gives
// inodes by path, so that hard links and a stable numbering would have to be found again. The price is that images which
// others wrote may be refused here with ErrUnsupported.
func (m *Mounted) mountTree(spec Spec) error {
	tree, err := readTree(spec.Metadata)
	if err != nil {
		return err
	}
	blobs := spec.Blobs
	if blobs == nil {
		files, err := openFiles(spec.Devices)
		if err != nil {
			return err
		}
		for _, f := range files {
			blobs = append(blobs, f)
			m.undo(func(context.Context) error { return ignoreClosed(f.file.Close()) })
		}
	}
	if len(blobs) != len(tree.Devices) {
		return fmt.Errorf("image has %d devices, got %d: %w", len(tree.Devices), len(blobs), blockfmt.ErrCorrupt)
	}
	return m.serve(spec, tree, blobs)
}

func (m *Mounted) serve(spec Spec, tree *metadata.Tree, blobs []fuse.Blob) error {
	cfg := fuse.Config{ReadTimeout: spec.ReadTimeout, Log: spec.Log}
	reader := fuse.NewReader(cfg)
	m.undo(func(context.Context) error { return reader.Close() })
	conn, err := fuse.Attach(spec.Target, newTreeFS(tree, blobs, reader), fuse.Traits{Xattrs: true, Plus: true, Exec: true}, cfg)
	if err != nil {
		return err
	}
	m.undo(func(context.Context) error {
		reader.Stop() // answers what is under way
		return conn.Close()
	})
	m.readAhead = conn.SetReadAhead
	if err := conn.SetReadAhead(spec.ReadAhead); err != nil {
		spec.Log.Warn("readahead stays at the default", "target", spec.Target, "err", err)
	}
	return nil
}

func readTree(path string) (*metadata.Tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return metadata.Read(f, info.Size())
}

// localFile is a complete device file as a Blob.
type localFile struct {
	file *os.File
	size int64
}

func (f localFile) Size() int64                              { return f.size }
func (f localFile) File() *os.File                           { return f.file }
func (f localFile) Fill(context.Context, int64, int64) error { return nil }

func openFiles(paths []string) ([]localFile, error) {
	var files []localFile
	for _, path := range paths {
		// Not os.Open, which makes the runtime poll the file: see package fuse.
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open device %s: %w", path, withKind(err)), closeFiles(files))
		}
		f := os.NewFile(uintptr(fd), path)
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close(), closeFiles(files))
		}
		files = append(files, localFile{f, info.Size()})
	}
	return files, nil
}

func closeFiles(files []localFile) error {
	var err error
	for _, f := range files {
		err = errors.Join(err, f.file.Close())
	}
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
