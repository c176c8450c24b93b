package erofs

import (
	"fmt"

	"github.com/xylem-project/xylem/blockfmt"
)

// Way is how a tree is mounted.
type Way int

const (
	WayFile Way = iota + 1 // kernel EROFS over files
	WayLoop                // kernel EROFS over loop devices over files
	WayTree                // a FUSE tree served by this process
)

// Ways returns all ways, the best first.
func Ways() []Way { return []Way{WayFile, WayLoop, WayTree} }

func (w Way) String() string {
	switch w {
	case WayFile:
		return "file"
	case WayLoop:
		return "loop"
	case WayTree:
		return "tree"
	}
	return fmt.Sprintf("Way(%d)", int(w))
}

// ParseWay is the inverse of String.
func ParseWay(s string) (Way, error) {
	for _, w := range Ways() {
		if w.String() == s {
			return w, nil
		}
	}
	return 0, fmt.Errorf("mount way %.40q, want file, loop or tree: %w", s, blockfmt.ErrUnsupported)
}
