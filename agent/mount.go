package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/fuse/erofs"
)

// mount is one EROFS mount, shared by all containers of a chain of layers.
type mount struct {
	dir string

	mu       sync.Mutex
	mounted  *erofs.Mounted // nil: not mounted
	image    *image
	blobs    []*blob      // per layer
	users    atomic.Int32 // changed under mu
	recorder *recorder    // nil: nothing is recorded
	explicit bool         // the recorder belongs to StartRecording, not to the first run
	since    time.Time
	started  bool // recordWindow has passed
}

// startupReadAhead is the kernel's readahead in bytes while a startup profile is recorded, and while an image that was laid out
// by one starts: the container reads the same pages again, and the kernel's guesses beside them, which would touch cold blocks,
// stay small.
const startupReadAhead = 32 << 10

// mount mounts the first n layers of im; the caller holds m.mu.
func (m *mount) mount(ctx context.Context, s *Images, im *image, n int) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release(s))
		}
	}()
	if m.recorder == nil && !im.hasRecord() && n == len(im.chains) {
		m.recorder = newRecorder(im)
	}
	spec := erofs.Spec{Target: m.dir, Way: s.way, ReadAhead: s.readAhead, Buffered: !m.explicit, ReadTimeout: s.readTimeout, Log: s.log}
	if m.explicit || im.startupBlocks() > 0 {
		spec.ReadAhead = min(s.readAhead, startupReadAhead)
	}
	for i := range n {
		b, err := s.blobs.acquire(im, i)
		if err != nil {
			return err
		}
		m.blobs = append(m.blobs, b)
		if m.recorder != nil {
			b.recorder.Store(m.recorder)
		}
		device, err := s.blobs.device(b, m.explicit)
		if err != nil {
			return err
		}
		spec.Devices, spec.Blobs = append(spec.Devices, device), append(spec.Blobs, b)
	}
	if spec.Metadata, err = s.discovery.prefixMetadata(ctx, im, n); err != nil {
		return err
	}
	if err = os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	start := time.Now()
	if m.mounted, err = erofs.Mount(ctx, spec); err != nil {
		return err
	}
	m.image, m.since, m.started = im, time.Now(), false
	s.log.Info("mounted", "ref", im.origin.Ref, "layers", n, "dir", m.dir, "took", m.since.Sub(start))
	return nil
}

// unmount undoes mount; the caller holds m.mu. It does nothing for what is not mounted. After an error it can be called again.
func (m *mount) unmount(ctx context.Context, s *Images) error {
	if m.mounted == nil {
		return nil
	}
	if err := m.mounted.Unmount(ctx); err != nil {
		return err
	}
	m.mounted = nil
	return errors.Join(m.saveRecord(), m.release(s), os.Remove(m.dir))
}

func (m *mount) release(s *Images) (err error) {
	for _, b := range m.blobs {
		b.recorder.Store(nil)
		err = errors.Join(err, s.blobs.release(b))
	}
	m.blobs, m.recorder, m.explicit, m.image = nil, nil, false, nil
	return err
}

// endStartup ends what is done differently while a container starts; the caller holds m.mu.
func (m *mount) endStartup(s *Images) error {
	if m.mounted == nil || m.started || m.explicit || time.Since(m.since) < recordWindow {
		return nil
	}
	m.started = true
	return errors.Join(m.saveRecord(), m.mounted.SetReadAhead(s.readAhead))
}

// saveRecord ends the recording of a first run and keeps what it recorded with the image.
func (m *mount) saveRecord() error {
	if m.recorder == nil || m.explicit {
		return nil
	}
	r := m.recorder.record()
	m.recorder = nil
	for _, b := range m.blobs {
		b.recorder.Store(nil)
	}
	if len(r) == 0 {
		return nil
	}
	return writeBytes(filepath.Join(m.image.dir, recordFile), r.Encode())
}
