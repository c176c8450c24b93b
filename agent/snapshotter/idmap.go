package snapshotter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// idMap is how a container's user namespace maps user and group IDs, as containerd's labels tell it.
type idMap struct {
	set              bool
	rootUID, rootGID int    // on the host
	uids, gids       string // "container:host:size", comma separated
}

// parseIDMap reads the labels of a snapshot; the zero value is for those without.
func parseIDMap(labels map[string]string) (m idMap, err error) {
	m.uids, m.gids = labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if m.uids == "" && m.gids == "" {
		return m, nil
	}
	m.set = true
	if m.rootUID, err = hostRoot(m.uids); err == nil {
		m.rootGID, err = hostRoot(m.gids)
	}
	return m, err
}

// hostRoot returns the ID that 0 is mapped to.
func hostRoot(mapping string) (int, error) {
	for _, entry := range strings.Split(mapping, ",") {
		var n [3]int
		fields := strings.Split(entry, ":")
		if len(fields) != len(n) {
			return 0, fmt.Errorf("ID mapping %q: want container:host:size: %w", mapping, errdefs.ErrInvalidArgument)
		}
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 31)
			if err != nil {
				return 0, fmt.Errorf("ID mapping %q: %w: %w", mapping, err, errdefs.ErrInvalidArgument)
			}
			n[i] = int(v)
		}
		if n[0] == 0 && n[2] > 0 {
			return n[1], nil
		}
	}
	return 0, fmt.Errorf("ID mapping %q does not map root: %w", mapping, errdefs.ErrInvalidArgument)
}
