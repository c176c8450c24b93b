package scheduler

import (
	"crypto/sha256"
	"encoding/binary"
)

// rendezvous returns which of the schedulers owns what has a name, as an image: that with the highest hash of both. Who comes or goes changes the owner
// of its share only. Empty if there are none.
func rendezvous[T ~string](name T, schedulers []string) string {
	best, highest := "", uint64(0)
	for _, s := range schedulers {
		sum := sha256.Sum256([]byte(s + "\x00" + string(name)))
		if h := binary.BigEndian.Uint64(sum[:]); best == "" || h > highest || h == highest && s < best {
			best, highest = s, h
		}
	}
	return best
}
