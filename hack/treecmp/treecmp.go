// Package treecmp says in what two directory trees differ, as far as a container can see it: names, types, modes, owners,
// sizes, times, attributes, devices, links and content.
package treecmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// MaxDifferences bounds what Compare reports.
const MaxDifferences = 50

// Options of a comparison.
type Options struct {
	// Root compares the two root directories' own attributes too. containerd makes those of an image that has no entry for
	// the root while it unpacks, so that their time is no property of the image.
	Root bool
	// Ignore says that a path need not be the same in a property: "mtime", "link count", "links", "content" and so on.
	// Default: nothing is ignored.
	Ignore func(path, property string) bool
	// MetadataOnly leaves out the content of regular files.
	MetadataOnly bool
}

// Compare walks both trees and returns one line for each difference, at most MaxDifferences, in the order of the paths.
// The link count and size of directories are left out: every file system has its own.
func Compare(ctx context.Context, want, got string, opts Options) ([]string, error) {
	c := comparer{opts: opts, want: newTree(want), got: newTree(got), a: make([]byte, 1<<20), b: make([]byte, 1<<20)}
	err := c.directory(ctx, ".")
	if err == nil {
		c.links()
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	return c.differences, err
}

var errEnough = errors.New("enough differences")

type inode struct{ dev, ino uint64 }

// tree is one side: where it is, and which paths are names of one file.
type tree struct {
	root  string
	links map[inode][]string // regular paths only, in walk order, of files with more than one name
}

func newTree(root string) tree {
	return tree{root: root, links: map[inode][]string{}}
}

func (t tree) path(p string) string { return filepath.Join(t.root, p) }

type comparer struct {
	opts        Options
	want, got   tree
	differences []string
	a, b        []byte // for the content of files
}

func (c *comparer) differ(path, format string, args ...any) error {
	c.differences = append(c.differences, fmt.Sprintf("%q: %s", path, fmt.Sprintf(format, args...)))
	if len(c.differences) >= MaxDifferences {
		return errEnough
	}
	return nil
}

// directory compares the attributes of two directories, then what is in them.
func (c *comparer) directory(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if path != "." || c.opts.Root {
		if _, err := c.attributes(path); err != nil {
			return err
		}
	}
	want, err := names(c.want.path(path))
	if err != nil {
		return err
	}
	got, err := names(c.got.path(path))
	if err != nil {
		return c.differ(path, "cannot be listed: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(union(want, got))) {
		child := filepath.Join(path, name)
		switch {
		case !want[name]:
			err = c.differ(child, "should not be there")
		case !got[name]:
			err = c.differ(child, "is missing")
		default:
			err = c.entry(ctx, child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func names(dir string) (map[string]bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	set := make(map[string]bool, len(list))
	for _, n := range list {
		set[n] = true
	}
	if err == nil && len(set) != len(list) {
		err = fmt.Errorf("%s lists a name twice", dir)
	}
	return set, err
}

func union(a, b map[string]bool) map[string]bool {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

func (c *comparer) entry(ctx context.Context, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(c.want.path(path), &st); err != nil {
		return fmt.Errorf("%s: %w", c.want.path(path), err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		var other unix.Stat_t
		if err := unix.Lstat(c.got.path(path), &other); err != nil || other.Mode&unix.S_IFMT != unix.S_IFDIR {
			return c.differ(path, "is no directory: mode %#o, %v", other.Mode, err)
		}
		return c.directory(ctx, path)
	}
	same, err := c.attributes(path)
	if err != nil || !same {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return c.target(path)
	case unix.S_IFREG:
		if !c.opts.MetadataOnly && !c.ignore(path, "content") {
			return c.content(path)
		}
	}
	return nil
}

// attributes compares what stat and the extended attributes say. It returns false if the types or sizes differ, so that a
// comparison of the content makes no sense.
func (c *comparer) attributes(path string) (bool, error) {
	var want, got unix.Stat_t
	if err := unix.Lstat(c.want.path(path), &want); err != nil {
		return false, fmt.Errorf("%s: %w", c.want.path(path), err)
	}
	if err := unix.Lstat(c.got.path(path), &got); err != nil {
		return false, c.differ(path, "stat: %v", err)
	}
	dir := want.Mode&unix.S_IFMT == unix.S_IFDIR
	pairs := []struct {
		what      string
		want, got any
		skip      bool
	}{
		{"mode", want.Mode, got.Mode, false},
		{"uid", want.Uid, got.Uid, false},
		{"gid", want.Gid, got.Gid, false},
		{"size", want.Size, got.Size, dir},
		{"mtime", want.Mtim, got.Mtim, false},
		{"link count", want.Nlink, got.Nlink, dir},
		{"device", want.Rdev, got.Rdev, false},
	}
	for _, p := range pairs {
		if p.want != p.got && !p.skip && !c.ignore(path, p.what) {
			if err := c.differ(path, "%s is %v, should be %v", p.what, p.got, p.want); err != nil {
				return false, err
			}
		}
	}
	if !dir {
		c.want.note(path, want)
		c.got.note(path, got)
	}
	return want.Mode&unix.S_IFMT == got.Mode&unix.S_IFMT && want.Size == got.Size, c.xattrs(path)
}

func (t tree) note(path string, st unix.Stat_t) {
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		t.links[id] = append(t.links[id], path)
	}
}

func (c *comparer) ignore(path, property string) bool {
	return c.opts.Ignore != nil && c.opts.Ignore(path, property)
}

func (c *comparer) xattrs(path string) error {
	want, err := xattrs(c.want.path(path))
	if err != nil {
		return err
	}
	got, err := xattrs(c.got.path(path))
	if err != nil {
		return c.differ(path, "%v", err)
	}
	if !maps.Equal(want, got) {
		return c.differ(path, "extended attributes are %q, should be %q", got, want)
	}
	return nil
}

func xattrs(path string) (map[string]string, error) {
	size, err := unix.Llistxattr(path, nil)
	list := make([]byte, max(size, 0))
	if size > 0 {
		size, err = unix.Llistxattr(path, list) // overlayfs leaves out its own ones only here
	}
	switch {
	case err == unix.ENOTSUP || err == nil && size == 0:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list extended attributes of %q: %w", path, err)
	}
	values := map[string]string{}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list[:size], []byte{0}), []byte{0}) {
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("extended attribute %q of %q: %w", name, path, err)
		}
		values[string(name)] = string(value[:n])
	}
	return values, nil
}

func (c *comparer) target(path string) error {
	want, err := os.Readlink(c.want.path(path))
	if err != nil {
		return err
	}
	if got, err := os.Readlink(c.got.path(path)); err != nil || got != want {
		return c.differ(path, "points to %q (%v), should point to %q", got, err, want)
	}
	return nil
}

// content compares two files of the same size byte by byte.
func (c *comparer) content(path string) error {
	want, err := os.Open(c.want.path(path))
	if err != nil {
		return err
	}
	defer want.Close()
	got, err := os.Open(c.got.path(path))
	if err != nil {
		return c.differ(path, "open: %v", err)
	}
	defer got.Close()
	for off := int64(0); ; {
		n, errWant := io.ReadFull(want, c.a)
		m, errGot := io.ReadFull(got, c.b)
		if i := firstDifference(c.a[:n], c.b[:m]); i >= 0 {
			return c.differ(path, "content differs from byte %d (read %d bytes: %v)", off+int64(i), m, errGot)
		}
		if errWant != nil {
			if errWant == io.EOF || errWant == io.ErrUnexpectedEOF {
				return nil
			}
			return errWant
		}
		off += int64(n)
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// links compares which paths are names of one file.
func (c *comparer) links() {
	want, got := c.want.groups(), c.got.groups()
	paths := maps.Clone(want)
	maps.Copy(paths, got)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if !slices.Equal(want[path], got[path]) && !c.ignore(path, "links") {
			if c.differ(path, "is one file with %q, should be with %q", got[path], want[path]) != nil {
				return
			}
		}
	}
}

// groups returns the names of each file that has several, by the first. Names that a tree hides do not count, though they
// may be in the link count.
func (t tree) groups() map[string][]string {
	groups := map[string][]string{}
	for _, paths := range t.links {
		if len(paths) > 1 {
			slices.Sort(paths)
			groups[paths[0]] = paths
		}
	}
	return groups
}
