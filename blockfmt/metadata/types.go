package metadata

import (
	"github.com/opencontainers/go-digest"
)

// File types in Inode.Mode, with the values of st_mode on Linux.
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeFile    = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFifo    = 0o010000
)

// Tree is the file tree of one layer or of a whole image. The data of its files lie on Devices.
//
// A Tree is not safe for concurrent changes. Trees that Merge returned may share inodes with its inputs, so whoever
// changes one must not use the other.
type Tree struct {
	Root    *Inode
	Devices []Device
}

// Device is a blob of file data, as an EROFS extra device.
type Device struct {
	Size   int64         // bytes of uncompressed data, a multiple of blockfmt.PageSize
	Digest digest.Digest // of the stored blob; may be empty
}

// Inode is a file, directory or special file. Two names of one file (hard links) are the same *Inode.
type Inode struct {
	Mode         uint32 // st_mode: type and permissions, with setuid, setgid and sticky
	UID, GID     uint32
	Mtime        int64 // seconds since 1970, may be negative
	MtimeNsec    uint32
	Major, Minor uint32            // of block and character devices
	Size         int64             // bytes, of regular files; symlinks and directories have the size that follows from their content
	Target       string            // of symlinks
	Xattrs       map[string]string // full names, such as security.capability
	Extents      []Extent          // of regular files, ascending and without overlap; what they leave out is a hole
	Entries      map[string]*Inode // of directories, without "." and ".."

	// The two fields below occur in the trees of single layers only. Merge resolves them.

	// Implicit marks a directory that the layer does not contain itself, only something below it: if a lower layer has
	// the directory, that one's attributes count.
	Implicit bool
	// LinkTo makes the entry a hard link to this path (no leading slash) of a lower layer. Everything else of the
	// inode but the type in Mode is without meaning.
	LinkTo string
}

// Extent maps a range of a file to its place on a device. FileOffset and DeviceOffset are multiples of
// blockfmt.PageSize, and so is Length unless the extent ends the file.
type Extent struct {
	FileOffset, Length int64 // bytes
	Device             int   // in Tree.Devices
	DeviceOffset       int64 // bytes
}

// IsDir says whether the inode is a directory.
func (in *Inode) IsDir() bool { return in.Mode&TypeMask == TypeDir }

// IsWhiteout says whether the inode is overlayfs's mark for "deleted here": a character device 0/0.
func (in *Inode) IsWhiteout() bool {
	return in.Mode&TypeMask == TypeChar && in.Major == 0 && in.Minor == 0
}
