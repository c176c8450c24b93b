package metadata

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/xylem-project/xylem/blockfmt"
)

// Extended attributes that carry what EROFS has no place for, in the images of single layers.
const (
	reservedXattrs = "trusted.xylem."
	xattrImplicit  = reservedXattrs + "implicit"
	xattrLink      = reservedXattrs + "link"
)

const (
	xattrHeaderSize = 12
	xattrEntrySize  = 4
	maxXattrName    = 255 // without the prefix
	maxXattrValue   = 1<<16 - 1
	maxXattrArea    = 4 * (1<<16 - 2) // bytes behind the header that an inode can have
)

// xattrPrefixes are the name prefixes that EROFS has numbers for. The two ACLs are whole names.
var xattrPrefixes = [...]struct {
	number uint8
	prefix string
}{
	{1, "user."}, {2, "system.posix_acl_access"}, {3, "system.posix_acl_default"}, {4, "trusted."}, {6, "security."},
}

// SupportsXattr says whether an image can hold an extended attribute of this name and a value of this many bytes.
// WriteTo fails on others. The prefix "trusted.xylem." is kept for this package.
func SupportsXattr(name string, valueSize int) bool {
	number, rest := splitXattr(name)
	return number != 0 && len(rest) <= maxXattrName && valueSize <= maxXattrValue &&
		!strings.HasPrefix(name, reservedXattrs) && !strings.Contains(rest, "\x00")
}

// splitXattr returns the number of the name's prefix and the rest; 0 if there is none.
func splitXattr(name string) (uint8, string) {
	for _, p := range xattrPrefixes {
		rest, ok := strings.CutPrefix(name, p.prefix)
		whole := !strings.HasSuffix(p.prefix, ".")
		if ok && whole == (rest == "") {
			return p.number, rest
		}
	}
	return 0, ""
}

func joinXattr(number uint8, rest string) (string, bool) {
	for _, p := range xattrPrefixes {
		if p.number == number {
			n, again := splitXattr(p.prefix + rest)
			return p.prefix + rest, n == number && again == rest
		}
	}
	return "", false
}

type xattr struct{ name, value string }

// xattrsOf returns everything that is stored as xattrs of the inode, sorted.
func xattrsOf(in *Inode) []xattr {
	if in.LinkTo != "" {
		return []xattr{{xattrLink, in.LinkTo}}
	}
	if len(in.Xattrs) == 0 && !in.Implicit {
		return nil
	}
	list := make([]xattr, 0, len(in.Xattrs)+1)
	for _, name := range slices.Sorted(maps.Keys(in.Xattrs)) {
		list = append(list, xattr{name, in.Xattrs[name]})
	}
	if in.Implicit {
		list = append(list, xattr{xattrImplicit, "y"})
	}
	return list
}

// xattrAreaSize returns the bytes that the inode's xattrs take behind it, or an error if they cannot be stored.
func xattrAreaSize(in *Inode) (int64, error) {
	for name, value := range in.Xattrs {
		if !SupportsXattr(name, len(value)) {
			return 0, fmt.Errorf("extended attribute %.80q of %d bytes: %w", name, len(value), blockfmt.ErrUnsupported)
		}
	}
	list := xattrsOf(in)
	if len(list) == 0 {
		return 0, nil
	}
	size := int64(0)
	for _, x := range list {
		_, rest := splitXattr(x.name)
		size += roundUp(int64(xattrEntrySize+len(rest)+len(x.value)), 4)
	}
	if size > maxXattrArea {
		return 0, fmt.Errorf("%d bytes of extended attributes: %w", size, blockfmt.ErrUnsupported)
	}
	return xattrHeaderSize + size, nil
}

// xattrWords is the form in which an inode holds the size of its xattr area, and xattrBytes the inverse.
func xattrWords(size int64) uint16 {
	if size == 0 {
		return 0
	}
	return uint16((size-xattrHeaderSize)/4 + 1)
}

func xattrBytes(words uint16) int64 {
	if words == 0 {
		return 0
	}
	return xattrHeaderSize + 4*int64(words-1)
}

// appendXattrs appends the xattr area. b must have a length that is a multiple of 4.
func appendXattrs(b []byte, list []xattr) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeaderSize)...)
	for _, x := range list {
		number, rest := splitXattr(x.name)
		b = append(b, uint8(len(rest)), number)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.value)))
		b = append(append(b, rest...), x.value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// decodeXattrs reads an xattr area into the inode.
func decodeXattrs(in *Inode, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if b[4] != 0 {
		return fmt.Errorf("shared extended attributes: %w", blockfmt.ErrUnsupported)
	}
	for b = b[xattrHeaderSize:]; len(b) > 0; {
		nameSize, valueSize := int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))
		size := int(roundUp(int64(xattrEntrySize+nameSize+valueSize), 4))
		if size > len(b) {
			return fmt.Errorf("extended attribute of %d bytes with %d left: %w", size, len(b), blockfmt.ErrCorrupt)
		}
		rest := string(b[xattrEntrySize : xattrEntrySize+nameSize])
		name, ok := joinXattr(b[1], rest)
		if !ok {
			return fmt.Errorf("extended attribute %.80q with prefix %d: %w", rest, b[1], blockfmt.ErrCorrupt)
		}
		if err := setXattr(in, name, string(b[xattrEntrySize+nameSize:][:valueSize])); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

func setXattr(in *Inode, name, value string) error {
	_, twice := in.Xattrs[name]
	switch {
	case name == xattrImplicit && value == "y" && in.IsDir() && !in.Implicit:
		in.Implicit = true
	case name == xattrLink && value != "" && in.Mode == TypeFile && in.LinkTo == "":
		in.LinkTo = value
	case twice || !SupportsXattr(name, len(value)):
		return fmt.Errorf("extended attribute %.80q: %w", name, blockfmt.ErrCorrupt)
	default:
		if in.Xattrs == nil {
			in.Xattrs = make(map[string]string)
		}
		in.Xattrs[name] = value
	}
	return nil
}
