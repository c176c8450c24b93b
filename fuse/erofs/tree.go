package erofs

import "github.com/xylem-project/xylem/blockfmt"

func (m *Mounted) mountTree(spec Spec) error { return blockfmt.ErrUnsupported }
