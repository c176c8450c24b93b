package invoke

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/function"
)

// Images asks nodes about images: they have the registries' settings and credentials. It is a function.Resolver.
type Images struct{ Fleet *fleet.Fleet }

// Resolve implements function.Resolver.
func (i Images) Resolve(ctx context.Context, image string) (api.ImageAnswer, error) {
	nodes := i.Fleet.Nodes()
	rand.Shuffle(len(nodes), func(a, b int) { nodes[a], nodes[b] = nodes[b], nodes[a] })
	err := fleet.ErrNoNodes
	for _, n := range nodes {
		var answer api.ImageAnswer
		answer, err = n.Resolve(ctx, image)
		if err == nil && answer.Digest.Validate() != nil {
			err = fmt.Errorf("node %s says that it is %.80q, which is no digest", n.Peer, answer.Digest)
		}
		if err == nil {
			return answer, nil
		}
		if fleet.IsKind(err, api.FailureImage) {
			return answer, fmt.Errorf("%w: %w", function.ErrInvalid, err)
		}
		if !errors.Is(err, fleet.ErrLost) {
			break
		}
	}
	return api.ImageAnswer{}, err
}
