package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/snapshotter"
	"github.com/xylem-project/xylem/blockfmt"
)

// recordWindow is how long after its mount an image's first run is recorded as its startup.
const recordWindow = time.Minute

// endStartups ends the startup of images that were mounted recordWindow ago, until ctx ends.
func (s *Images) endStartups(ctx context.Context) {
	tick := time.NewTicker(recordWindow / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		mounts := maps.Clone(s.mounts)
		s.mu.Unlock()
		for _, m := range mounts {
			m.mu.Lock()
			if err := m.endStartup(s); err != nil {
				s.log.Warn("startup not ended cleanly", "image", m.image.artifact.Digest, "err", err)
			}
			m.mu.Unlock()
		}
	}
}

// Open finds the block image of ref and returns the chain ID of its whole tree.
func (s *Images) Open(ctx context.Context, ref string) (digest.Digest, error) {
	o, source, err := s.source(ctx, snapshotter.Request{Ref: ref})
	if err != nil {
		return "", err
	}
	im, err := s.obtain(ctx, o, source)
	if err != nil {
		return "", err
	}
	return im.chains[len(im.chains)-1], nil
}

// StartRecording records which pages of the image the containers read from now on: it mounts the image anew, with a cold page
// cache and little readahead, so nobody may be using it.
func (s *Images) StartRecording(ctx context.Context, ref string) error {
	chain, err := s.Open(ctx, ref)
	if err != nil {
		return err
	}
	m := s.mount(chain)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.users.Load(); n > 0 {
		return fmt.Errorf("record %s: %d containers use it, stop them first", ref, n)
	}
	if err := m.unmount(ctx, s); err != nil {
		return err
	}
	s.mu.Lock()
	im, n := s.lookup(chain)
	s.mu.Unlock()
	if im == nil {
		return fmt.Errorf("record %s: %w", ref, blockfmt.ErrNotFound)
	}
	m.recorder, m.explicit = newRecorder(im), true
	m.recorder.pages = true
	return m.mount(ctx, s, im, n)
}

// StopRecording returns what was read since StartRecording. The mount stays slow until its last user is gone and it is
// mounted anew, which happens here if there is none.
func (s *Images) StopRecording(ctx context.Context, ref string) (blockfmt.Profile, error) {
	chain, err := s.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	m := s.mount(chain)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.explicit {
		return nil, fmt.Errorf("record %s: nothing is being recorded", ref)
	}
	tree, err := readTree(filepath.Join(m.image.dir, metadataFile))
	if err != nil {
		return nil, err
	}
	profile, err := m.recorder.profile(tree)
	if err != nil || m.users.Load() > 0 {
		return profile, err
	}
	return profile, m.unmount(ctx, s)
}
