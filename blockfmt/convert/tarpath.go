package convert

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// walk returns what a clean absolute path names in the layer, without following symbolic links, or nil.
func (t *layerTree) walk(name string) *metadata.Inode {
	in := t.root
	for rest := name[1:]; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if in = in.Entries[part]; in == nil {
			return nil
		}
	}
	return in
}

// resolve returns the clean absolute path that name leads to when every symbolic link in it that the layer contains is
// followed, with the layer's root as the root for absolute targets and for dots. What does not exist is taken as it is.
func (t *layerTree) resolve(name string) (string, error) {
	name = path.Clean("/" + name)
	for links := 0; links <= maxLinks; links++ {
		next, followed := t.followFirst(name)
		if !followed {
			return name, nil
		}
		if name = next; len(name) > maxPath {
			return "", fmt.Errorf("path of more than %d bytes: %w", maxPath, blockfmt.ErrCorrupt)
		}
	}
	return "", fmt.Errorf("too many symbolic links among its parents: %w", blockfmt.ErrCorrupt)
}

// followFirst replaces the first symbolic link in a clean absolute path by its target.
func (t *layerTree) followFirst(name string) (string, bool) {
	in := t.root
	for at := 1; at < len(name); {
		end := len(name)
		if i := strings.IndexByte(name[at:], '/'); i >= 0 {
			end = at + i
		}
		in = in.Entries[name[at:end]]
		if in == nil {
			return "", false
		}
		if in.Mode&metadata.TypeMask == metadata.TypeSymlink {
			target := in.Target
			if !strings.HasPrefix(target, "/") {
				target = path.Join(name[:at], target)
			}
			return path.Join("/", target, name[end:]), true
		}
		at = end + 1
	}
	return "", false
}

// lookup returns what a tar entry's name leads to, symbolic links followed to the end, or nil.
func (t *layerTree) lookup(name string) (*metadata.Inode, error) {
	full, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	return t.walk(full), nil
}

// mkdirAll returns the directory at a resolved path and makes what is missing of it.
func (t *layerTree) mkdirAll(name string) (*metadata.Inode, error) {
	dir := t.root
	for rest := name[1:]; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		next := dir.Entries[part]
		if next == nil || next.IsWhiteout() {
			made := newDir()
			if next != nil { // deleted and made anew: nothing of the lower layers shows
				made.Implicit = false
				setXattr(made, opaqueXattr, "y")
			}
			if err := t.count(len(part)); err != nil {
				return nil, err
			}
			if err := t.link(dir, part, made); err != nil {
				return nil, err
			}
			next = made
		}
		if !next.IsDir() {
			return nil, fmt.Errorf("its parent %.300q is no directory: %w", part, blockfmt.ErrCorrupt)
		}
		dir = next
	}
	return dir, nil
}

// setAttributes sets on an inode what every entry's header says, hard links' headers too.
func setAttributes(in *metadata.Inode, hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Uid > 1<<32-2 || hdr.Gid < 0 || hdr.Gid > 1<<32-2 {
		return fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, blockfmt.ErrCorrupt)
	}
	in.UID, in.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	in.Mode = in.Mode&metadata.TypeMask | uint32(hdr.Mode)&0o7777
	if in.Mode&metadata.TypeMask == metadata.TypeSymlink {
		in.Mode = metadata.TypeSymlink | 0o777
	}
	setTime(in, hdr.ModTime)
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !keepsXattr(in, name) {
			continue
		}
		if len(name) > maxXattrName || len(value) > maxXattrValue {
			return fmt.Errorf("extended attribute %.80q of %d bytes: %w", name, len(value), blockfmt.ErrCorrupt)
		}
		setXattr(in, name, value)
	}
	return nil
}

// keepsXattr says whether Linux and containerd let an image set this attribute: not the ones in "trusted.", which steer
// overlayfs, and "user." only on files and directories.
func keepsXattr(in *metadata.Inode, name string) bool {
	kind := in.Mode & metadata.TypeMask
	switch {
	case strings.HasPrefix(name, "user."):
		return len(name) > len("user.") && (kind == metadata.TypeFile || kind == metadata.TypeDir)
	case strings.HasPrefix(name, "security."):
		return len(name) > len("security.")
	}
	return name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

func setXattr(in *metadata.Inode, name, value string) {
	if in.Xattrs == nil {
		in.Xattrs = map[string]string{}
	}
	in.Xattrs[name] = value
}

// setTime sets the modification time. Times that do not fit 64 bits of nanoseconds after 1970 become 1970, as in containerd.
func setTime(in *metadata.Inode, t time.Time) {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, 1<<63-1)) {
		t = time.Unix(0, 0)
	}
	in.Mtime, in.MtimeNsec = t.Unix(), uint32(t.Nanosecond())
}
