package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/xylem-project/xylem/scheduler/api"
)

// pullTimeout bounds a pull. It goes on when the start that began it gives up, so that the next one finds the image.
const pullTimeout = 10 * time.Minute

// maxImages is how many images' facts are remembered.
const maxImages = 1000

// image is what a start needs to know of an image that containerd has prepared.
type image struct {
	name   string // in containerd
	chain  string // name of the snapshot that containers are prepared on
	config ocispec.ImageConfig
	user   specs.User
}

// images pulls images and remembers what starts need of them, so that a start asks containerd nothing. Safe for concurrent use.
type images struct {
	client *containerd.Client
	cfg    Config
	pulls  sync.WaitGroup

	mu    sync.Mutex
	known map[digest.Digest]*pull
	used  map[string]time.Time // names of images in containerd, and when a start used them last
}

// pull is one in progress, or its result.
type pull struct {
	done  chan struct{} // closed when what follows is set
	image *image
	err   error
}

// get returns the image of a function. ctx bounds the wait; a pull itself ends with life, which outlives all calls.
func (s *images) get(ctx, life context.Context, fn api.Function) (*image, error) {
	p := s.begin(life, fn)
	select {
	case <-p.done:
		return p.image, p.err
	case <-ctx.Done():
		return nil, fmt.Errorf("image %s is still being pulled: %w", fn.Ref(), ctx.Err())
	}
}

func (s *images) begin(life context.Context, fn api.Function) *pull {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[imageName(fn)] = time.Now()
	if p := s.known[fn.Digest]; p != nil {
		return p
	}
	if len(s.known) >= maxImages {
		clear(s.known)
	}
	p := &pull{done: make(chan struct{})}
	s.known[fn.Digest] = p
	s.pulls.Go(func() {
		ctx, cancel := context.WithTimeout(life, pullTimeout)
		defer cancel()
		if p.image, p.err = s.pull(ctx, fn); p.err != nil {
			s.forget(fn.Digest)
		}
		close(p.done)
	})
	return p
}

// forget makes the next start ask containerd again.
func (s *images) forget(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, d)
}

// imageName is what containerd's clients call a function's image.
func imageName(fn api.Function) string {
	named, err := reference.ParseDockerRef(fn.Ref())
	if err != nil {
		return fn.Ref() // the pull says why that is none
	}
	return named.String()
}

func (s *images) pull(ctx context.Context, fn api.Function) (*image, error) {
	name := imageName(fn)
	pulled, err := s.client.GetImage(ctx, name)
	if err == nil {
		var unpacked bool
		if unpacked, err = pulled.IsUnpacked(ctx, s.cfg.Snapshotter); err == nil && !unpacked {
			err = errdefs.ErrNotFound
		}
	}
	if errdefs.IsNotFound(err) {
		// Every layer is offered to the snapshotter with the image's name and digest: those of a block image are not downloaded.
		pulled, err = s.client.Pull(ctx, name, containerd.WithPullUnpack, containerd.WithPullSnapshotter(s.cfg.Snapshotter),
			containerd.WithResolver(s.cfg.Resolver), containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(name)))
	}
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", name, err)
	}
	im, err := s.describe(ctx, pulled)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return im, nil
}

// maxConfig bounds an image's configuration, in bytes.
const maxConfig = 4 << 20

func (s *images) describe(ctx context.Context, pulled containerd.Image) (*image, error) {
	desc, err := pulled.Config(ctx)
	if err != nil {
		return nil, err
	}
	if desc.Size > maxConfig {
		return nil, fmt.Errorf("its configuration has %d bytes, at most %d", desc.Size, maxConfig)
	}
	blob, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(blob, &config); err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	im := &image{name: pulled.Name(), chain: identity.ChainID(config.RootFS.DiffIDs).String(), config: config.Config}
	im.user, err = s.userOf(ctx, im)
	return im, err
}

// sweep removes images that no start has used for a while, as long as ctx lives. Instances keep theirs: containerd removes what nobody
// refers to.
func (s *images) sweep(ctx context.Context) {
	began := time.Now()
	for ctx.Err() == nil {
		wait(ctx, s.cfg.KeepImages/4)
		if err := s.removeUnused(ctx, began); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("cannot remove unused images of functions", "err", err)
		}
	}
}

func (s *images) removeUnused(ctx context.Context, began time.Time) error {
	list, err := s.client.ImageService().List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, im := range list {
		if s.release(im.Name, began) {
			errs = append(errs, s.client.ImageService().Delete(ctx, im.Name))
			s.cfg.Log.Info("image of functions removed, no start has used it lately", "image", im.Name)
		}
	}
	return errors.Join(errs...)
}

// release forgets an image if it is unused. An image of a former run counts as used when this one began.
func (s *images) release(name string, began time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.used[name]
	if !ok {
		last = began
	}
	if time.Since(last) < s.cfg.KeepImages {
		return false
	}
	delete(s.used, name)
	for d, p := range s.known {
		select {
		case <-p.done:
			if p.image != nil && p.image.name == name {
				delete(s.known, d)
			}
		default:
		}
	}
	return true
}
