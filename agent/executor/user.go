package executor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// accountsPrefix begins the names of snapshots and directories for a look at an image's accounts.
const accountsPrefix = "accounts-"

// maxAccounts bounds the image's files of users and groups, in bytes.
const maxAccounts = 1 << 20

// userOf finds the user of an image's configuration: "", or user[:group], each by name or number, as docker does.
func (s *images) userOf(ctx context.Context, im *image) (specs.User, error) {
	name, group, hasGroup := strings.Cut(im.config.User, ":")
	uid, nameErr := parseID(name)
	gid, groupErr := parseID(group)
	if im.config.User == "" || nameErr == nil && hasGroup && groupErr == nil {
		return specs.User{UID: uid, GID: gid}, nil
	}
	users, groups, err := s.accounts(ctx, im.chain)
	if err != nil {
		return specs.User{}, fmt.Errorf("user %q: %w", im.config.User, err)
	}
	return lookUp(users, groups, name, group)
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// lookUp resolves a user, and the group unless it is empty, with the contents of /etc/passwd and /etc/group.
func lookUp(passwd, groups, name, group string) (user specs.User, err error) {
	found := false
	if user.UID, err = parseID(name); err == nil {
		found = true // need not be listed
	}
	for fields := range records(passwd, 4) {
		uid, uidErr := parseID(fields[2])
		gid, gidErr := parseID(fields[3])
		if uidErr != nil || gidErr != nil || fields[0] != name && fields[2] != name {
			continue
		}
		user.UID, user.GID, name, found = uid, gid, fields[0], true
		break
	}
	if !found {
		return user, fmt.Errorf("user %q is not in the image's /etc/passwd", name)
	}
	found = group == ""
	if gid, err := parseID(group); err == nil {
		user.GID, found = gid, true
	}
	for fields := range records(groups, 4) {
		gid, err := parseID(fields[2])
		if err != nil {
			continue
		}
		if group != "" && fields[0] == group {
			user.GID, found = gid, true
		}
		if group == "" && slices.Contains(strings.Split(fields[3], ","), name) {
			user.AdditionalGids = append(user.AdditionalGids, gid)
		}
	}
	if !found {
		return user, fmt.Errorf("group %q is not in the image's /etc/group", group)
	}
	return user, nil
}

// records yields the lines of a file of accounts that have at least n fields.
func records(text string, n int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(text) {
			if fields := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(fields) >= n && !yield(fields) {
				return
			}
		}
	}
}

// accounts returns the contents of an image's /etc/passwd and /etc/group, empty if there is none.
func (s *images) accounts(ctx context.Context, chain string) (passwd, groups string, err error) {
	key := accountsPrefix + rand.Text()
	snapshotter := s.client.SnapshotService(s.cfg.Snapshotter)
	mounts, err := snapshotter.View(ctx, key, chain, rooted())
	if err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, snapshotter.Remove(context.WithoutCancel(ctx), key)) }()
	dir := filepath.Join(s.cfg.State, key)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := mount.All(mounts, dir); err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(dir, unix.MNT_DETACH)) }()
	if passwd, err = readInside(ctx, dir, "etc/passwd"); err == nil {
		groups, err = readInside(ctx, dir, "etc/group")
	}
	return passwd, groups, err
}

// rooted keeps containerd from collecting a snapshot that no container refers to (yet).
func rooted() snapshots.Opt {
	return snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)})
}

// readInside reads a file of a tree that this very process may serve the data of. A process that waits in a read for data that it has
// to deliver itself cannot be killed, so another one reads; opening touches metadata only. Links stay inside of the tree.
func readInside(ctx context.Context, dir, path string) (string, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open /%s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	cmd := exec.CommandContext(ctx, "head", "-c", strconv.Itoa(maxAccounts))
	cmd.Stdin = file
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("read /%s: %w", path, err)
	}
	return string(text), nil
}
