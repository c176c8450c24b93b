package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// mountAt mounts an image at a directory outside the agent's own, for `xylem mount`.
func (a *agent) mountAt(ctx context.Context, req MountRequest) (MountResult, error) {
	if !filepath.IsAbs(req.Dir) || req.Ref == "" {
		return MountResult{}, badRequest{fmt.Errorf("mount %q at %q: want an image reference and an absolute directory", req.Ref, req.Dir)}
	}
	a.bindsMu.Lock()
	defer a.bindsMu.Unlock()
	if _, ok := a.binds[req.Dir]; ok {
		return MountResult{}, badRequest{fmt.Errorf("mount at %s: an image is mounted there already, `xylem unmount` it first", req.Dir)}
	}
	chain, err := a.images.Open(ctx, req.Ref)
	if err != nil {
		return MountResult{}, err
	}
	dir, err := a.images.Mount(ctx, chain)
	if err != nil {
		return MountResult{}, err
	}
	if err := bindReadOnly(dir, req.Dir); err != nil {
		return MountResult{}, errors.Join(err, a.images.Unmount(ctx, chain))
	}
	a.binds[req.Dir] = chain
	return MountResult{Chain: chain, Dir: req.Dir}, nil
}

// unmountAt undoes mountAt.
func (a *agent) unmountAt(ctx context.Context, req MountRequest) (MountResult, error) {
	a.bindsMu.Lock()
	defer a.bindsMu.Unlock()
	chain, ok := a.binds[req.Dir]
	if !ok {
		return MountResult{}, badRequest{fmt.Errorf("unmount %s: this agent mounted nothing there", req.Dir)}
	}
	return a.unbind(ctx, req.Dir, chain)
}

func (a *agent) unbind(ctx context.Context, dir string, chain digest.Digest) (MountResult, error) {
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: somebody else did it
		return MountResult{}, fmt.Errorf("unmount %s: %w: stop what uses it", dir, err)
	}
	delete(a.binds, dir)
	return MountResult{Chain: chain, Dir: dir}, a.images.Unmount(ctx, chain)
}

// unbindAll undoes every mountAt at shutdown.
func (a *agent) unbindAll(ctx context.Context) (err error) {
	a.bindsMu.Lock()
	defer a.bindsMu.Unlock()
	for dir, chain := range a.binds {
		_, e := a.unbind(ctx, dir, chain)
		if e != nil {
			e = errors.Join(e, unix.Unmount(dir, unix.MNT_DETACH))
		}
		err = errors.Join(err, e)
	}
	return err
}

func bindReadOnly(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount at %s: %w", to, err)
	}
	if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("mount at %s: %w", to, err), unix.Unmount(to, unix.MNT_DETACH))
	}
	return nil
}
