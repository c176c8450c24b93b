package scheduler

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/opencontainers/go-digest"
)

// rendezvous returns which of the schedulers owns an image: that with the highest hash of both. Who comes or goes changes the owner
// of its share of the images only. Empty if there are none.
func rendezvous(image digest.Digest, schedulers []string) string {
	best, highest := "", uint64(0)
	for _, s := range schedulers {
		sum := sha256.Sum256([]byte(s + "\x00" + image.String()))
		if h := binary.BigEndian.Uint64(sum[:]); best == "" || h > highest || h == highest && s < best {
			best, highest = s, h
		}
	}
	return best
}
