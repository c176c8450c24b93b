package scheduler

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/tree"
)

// Keys in the store. Values are JSON.
const (
	clusterKey       = "cluster"
	tokensPrefix     = "tokens/"     // + ID of the token
	revokedPrefix    = "revoked/"    // + peer ID
	schedulersPrefix = "schedulers/" // + URL; these live no longer than the scheduler
	ownersPrefix     = "owners/"     // + image
	membersPrefix    = "members/"    // + image + "/" + peer ID
	convertedPrefix  = "converted/"  // + source image
	holdersPrefix    = "holders/"    // + peer ID
)

// owner says who owns the tree of an image. It is written when the tree is claimed and when its last member is gone, so its
// revision is that of the claim as long as the claim stands.
type owner struct {
	Term      uint64 `json:"term"`
	Scheduler string `json:"scheduler"` // URL
	Ref       string `json:"ref,omitempty"`
	Idle      bool   `json:"idle,omitempty"` // it has no members
}

// member is an agent in a tree, as its last event left it. Held is how it was then.
type member struct {
	tree.Placed
	Peer  api.Peer `json:"peer"`
	Total []int    `json:"total"`
}

// revocation says that an agent does not belong to the cluster any more.
type revocation struct {
	Time time.Time `json:"time"`
}

func membersOf(image digest.Digest) string { return membersPrefix + image.String() + "/" }

// item encodes a value, all of which can be.
func item(key string, value any) store.Item {
	text, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", key, err))
	}
	return store.Item{Key: key, Value: text}
}

// decode reads what item wrote.
func decode[T any](i store.Item) (value T, err error) {
	if err = json.Unmarshal(i.Value, &value); err != nil {
		err = fmt.Errorf("record %s: %w", i.Key, err)
	}
	return value, err
}

// names returns what follows the prefix in the keys of items.
func names(items []store.Item, prefix string) []string {
	all := make([]string, len(items))
	for i, item := range items {
		all[i] = strings.TrimPrefix(item.Key, prefix)
	}
	return all
}
