package metadata

import "strings"

const (
	followLast = 1 << iota // follow a symlink that is the last element of the path
	makeDirs               // make directories that are missing

	maxSymlinks = 40 // as Linux
)

// resolve returns what a path means in a tree with this root, following symlinks in its directories as the kernel would
// after a chroot, or nil.
func resolve(root *Inode, path string, flags int) *Inode {
	dirs := []*Inode{root} // from the root to where we are
	todo := elements(path)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			dirs = dirs[:max(len(dirs)-1, 1)]
			continue
		}
		entries := dirs[len(dirs)-1].Entries
		in := entries[name]
		if in == nil && flags&makeDirs != 0 {
			in = &Inode{Mode: TypeDir | 0o755, Entries: make(map[string]*Inode)}
			entries[name] = in
		}
		switch {
		case in == nil:
			return nil
		case in.Mode&TypeMask == TypeSymlink && (len(todo) > 0 || flags&followLast != 0):
			if links++; links > maxSymlinks {
				return nil
			}
			if strings.HasPrefix(in.Target, "/") {
				dirs = dirs[:1]
			}
			todo = append(elements(in.Target), todo...)
		case in.IsDir():
			dirs = append(dirs, in)
		case len(todo) > 0:
			return nil
		default:
			return in
		}
	}
	return dirs[len(dirs)-1]
}

// elements splits a path, without what means nothing in it.
func elements(path string) []string {
	var list []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			list = append(list, name)
		}
	}
	return list
}
