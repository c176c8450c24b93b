package agent

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// writeDurable makes path a file with what write writes, so that after a crash it is there as a whole or as it was
// before: write a temporary file beside it, fsync it, rename it over path, fsync the directory.
func writeDurable(path string, perm os.FileMode, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = write(f)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// WriteFile replaces the file at path durably: after a crash it is there as a whole or as it was before.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	return writeDurable(path, perm, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func writeBytes(path string, data []byte) error {
	return WriteFile(path, data, 0o600)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
