package metadata

import (
	"errors"
	"maps"
	"slices"
	"strings"
)

// SkipDir, returned by a Walk function for a directory, leaves out what is below it.
//
//lint:ignore ST1012 it is no failure, and named after fs.SkipDir
var SkipDir = errors.New("skip this directory")

// Walk calls do for every name in the tree, a directory before its entries and those in bytewise order. The root's path is
// "", others have no leading slash. A file with several names is visited under each.
func (t *Tree) Walk(do func(path string, in *Inode) error) error { return walk("", t.Root, do) }

func walk(path string, in *Inode, do func(string, *Inode) error) error {
	if err := do(path, in); err != nil {
		if err == SkipDir && in.IsDir() {
			return nil
		}
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(in.Entries)) {
		if err := walk(join(path, name), in.Entries[name], do); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Lookup returns the inode at a slash-separated path, or nil if there is none. Symlinks are not followed; empty elements
// and leading slashes are ignored.
func (t *Tree) Lookup(path string) *Inode {
	in := t.Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if in = in.Entries[name]; in == nil {
			return nil
		}
	}
	return in
}
