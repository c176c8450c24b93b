package convert

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/metadata"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	xattrRecord    = "SCHILY.xattr."

	// Limits of Linux, in bytes. A tar that exceeds them cannot be unpacked, so an image cannot mean it.
	maxName       = 255
	maxPath       = 4096
	maxXattrName  = 255
	maxXattrValue = 65535

	maxLinks = 255 // symbolic links followed for one name, as containerd has it
)

// limits bounds what an image may expand to. Shared by the layers of one conversion.
type limits struct {
	entries  int   // tar entries and implied directories of one layer
	metadata int64 // bytes of names, link targets and extended attributes of one layer
}

// layerTree collects the tree of one layer from its tar entries, in their order. Not safe for concurrent use.
type layerTree struct {
	root    *metadata.Inode
	limits  limits
	store   storeFunc
	dirs    []dirTime
	entries int
	bytes   int64
}

// storeFunc keeps the data of the file with a name, an absolute path.
type storeFunc func(name string, r io.Reader, size int64) ([]metadata.Extent, error)

// dirTime is what a directory's entry said its time is. It is set at the end, on whatever has that name by then.
type dirTime struct {
	name string
	time time.Time
}

func newLayerTree(l limits, store storeFunc) *layerTree {
	return &layerTree{root: newDir(), limits: l, store: store}
}

// newDir returns a directory as it is when no entry says otherwise.
func newDir() *metadata.Inode {
	return &metadata.Inode{Mode: metadata.TypeDir | 0o755, Entries: map[string]*metadata.Inode{}, Implicit: true}
}

// read takes all entries of a tar archive. Errors of the archive wrap ErrCorrupt or ErrUnsupported, errors of the
// reader beneath are passed on.
func (t *layerTree) read(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("tar: %w", asCorrupt(err))
		}
		if err := t.add(hdr, tr); err != nil {
			return fmt.Errorf("tar entry %.300q: %w", hdr.Name, err)
		}
	}
	t.setDirTimes()
	return nil
}

func (t *layerTree) setDirTimes() {
	for _, d := range t.dirs {
		if in, err := t.lookup(d.name); err == nil && in != nil {
			setTime(in, d.time)
		}
	}
	t.dirs = nil
}

// count bounds the layer's memory.
func (t *layerTree) count(n int) error {
	t.entries++
	t.bytes += int64(n)
	if t.entries > t.limits.entries {
		return fmt.Errorf("more than %d entries in a layer: %w", t.limits.entries, blockfmt.ErrUnsupported)
	}
	if t.bytes > t.limits.metadata {
		return fmt.Errorf("more than %d bytes of names and attributes in a layer: %w", t.limits.metadata, blockfmt.ErrUnsupported)
	}
	return nil
}

func (t *layerTree) add(hdr *tar.Header, data io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean(hdr.Name)
	dirName, base := path.Split(name)
	dirPath, err := t.resolve(dirName)
	if err != nil {
		return err
	}
	if base == "." || base == ".." || base == "" {
		return nil // the root: a cleaned name has dots at its front only
	}
	size := len(base) + len(hdr.Linkname)
	for k, v := range hdr.PAXRecords {
		size += len(k) + len(v)
	}
	if err := t.count(size); err != nil {
		return err
	}
	if len(dirPath)+len(base)+1 > maxPath {
		return fmt.Errorf("path of more than %d bytes: %w", maxPath, blockfmt.ErrCorrupt)
	}
	dir, err := t.mkdirAll(dirPath)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return t.whiteout(dir, base, hdr)
	}
	return t.put(dir, path.Join(dirPath, base), hdr, data)
}

// whiteout translates the tar form into overlayfs's. A whiteout that follows an entry of its name in the same layer hides
// what the lower layers have there, and not the entry: the OCI specification has whiteouts apply to lower layers only.
// In the other order the entry simply replaces the whiteout, as it does in containerd.
func (t *layerTree) whiteout(dir *metadata.Inode, base string, hdr *tar.Header) error {
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case base == opaqueMarker:
		setXattr(dir, opaqueXattr, "y")
		return nil
	case hidden == "" || hidden == "." || hidden == "..":
		return fmt.Errorf("whiteout of no file: %w", blockfmt.ErrCorrupt)
	case strings.HasPrefix(hidden, whiteoutPrefix): // left over from aufs
		return nil
	}
	if old := dir.Entries[hidden]; old != nil {
		if old.IsDir() {
			setXattr(old, opaqueXattr, "y")
		}
		return nil
	}
	in := &metadata.Inode{Mode: metadata.TypeChar, UID: uint32(hdr.Uid), GID: uint32(hdr.Gid)}
	return t.link(dir, hidden, in)
}

// put makes the entry name, an absolute resolved path whose parent is dir.
func (t *layerTree) put(dir *metadata.Inode, name string, hdr *tar.Header, data io.Reader) error {
	base := path.Base(name)
	if hdr.Typeflag == tar.TypeLink {
		in, err := t.linkTarget(name, hdr.Linkname)
		if err != nil {
			return err
		}
		if in.LinkTo == "" {
			if err := setAttributes(in, hdr); err != nil {
				return err
			}
		}
		return t.link(dir, base, in)
	}
	in := dir.Entries[base]
	if in == nil || !in.IsDir() || hdr.Typeflag != tar.TypeDir {
		in = &metadata.Inode{}
	}
	if err := t.fill(in, name, hdr, data); err != nil {
		return err
	}
	if err := setAttributes(in, hdr); err != nil {
		return err
	}
	if in.IsDir() {
		t.dirs = append(t.dirs, dirTime{hdr.Name, hdr.ModTime})
	}
	return t.link(dir, base, in)
}

// fill sets type and content of an inode.
func (t *layerTree) fill(in *metadata.Inode, name string, hdr *tar.Header, data io.Reader) (err error) {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		in.Mode, in.Size = metadata.TypeFile, hdr.Size
		in.Extents, err = t.store(name, data, hdr.Size)
		return err
	case tar.TypeDir:
		in.Mode, in.Implicit = metadata.TypeDir, false
		if in.Entries == nil {
			in.Entries = map[string]*metadata.Inode{}
		}
	case tar.TypeSymlink:
		in.Mode, in.Target = metadata.TypeSymlink, hdr.Linkname
		if len(in.Target) == 0 || len(in.Target) >= maxPath {
			return fmt.Errorf("symbolic link to a path of %d bytes: %w", len(in.Target), blockfmt.ErrCorrupt)
		}
	case tar.TypeFifo:
		in.Mode = metadata.TypeFifo
	case tar.TypeChar, tar.TypeBlock:
		in.Mode = metadata.TypeChar
		if hdr.Typeflag == tar.TypeBlock {
			in.Mode = metadata.TypeBlock
		}
		return setDevice(in, hdr)
	default:
		return fmt.Errorf("type %q: %w", hdr.Typeflag, blockfmt.ErrUnsupported)
	}
	return nil
}

// setDevice takes of the numbers what Linux keeps of them: 12 and 20 bits.
func setDevice(in *metadata.Inode, hdr *tar.Header) error {
	if hdr.Devmajor < 0 || hdr.Devmajor > 1<<32-1 || hdr.Devminor < 0 || hdr.Devminor > 1<<32-1 {
		return fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, blockfmt.ErrCorrupt)
	}
	in.Major, in.Minor = uint32(hdr.Devmajor)&0xfff, uint32(hdr.Devminor)&0xfffff
	return nil
}

// linkTarget finds what a hard link is to; the last part of the target is not followed if it is a symbolic link.
func (t *layerTree) linkTarget(name, target string) (*metadata.Inode, error) {
	dirName, base := path.Split(path.Clean("/" + target))
	dirPath, err := t.resolve(dirName)
	if err != nil {
		return nil, err
	}
	full := path.Join(dirPath, base)
	if full == name {
		return nil, fmt.Errorf("hard link to itself: %w", blockfmt.ErrCorrupt)
	}
	in := t.walk(full)
	switch {
	case in == nil && full == "/", in != nil && in.IsDir():
		return nil, fmt.Errorf("hard link to the directory %.300q: %w", target, blockfmt.ErrCorrupt)
	case in == nil || in.IsWhiteout():
		return &metadata.Inode{Mode: metadata.TypeFile, LinkTo: full[1:]}, nil
	}
	return in, nil
}

// link gives an inode a name in dir, in place of whatever has that name.
func (t *layerTree) link(dir *metadata.Inode, name string, in *metadata.Inode) error {
	if len(name) > maxName {
		return fmt.Errorf("name of %d bytes, at most %d: %w", len(name), maxName, blockfmt.ErrCorrupt)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("name contains a zero byte: %w", blockfmt.ErrCorrupt)
	}
	dir.Entries[name] = in
	return nil
}
